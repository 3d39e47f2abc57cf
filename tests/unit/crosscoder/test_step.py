"""One step of the fit: loss and gradients against autograd of the plain dense formula, selection, Adam, schedule."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.crosscoder.fit import FitConfig, FitState, _Step, learning_rate_at, rows_at, select, start

Gradients = list[Tensor]


class _Recording(_Step):
    """A step that keeps its gradients instead of taking them."""

    def _adam(self, state: FitState, gradients: Gradients) -> None:
        self.gradients = gradients


def _state(config: FitConfig, widths: list[int]) -> FitState:
    """A state away from the start: every parameter is random, encoder and decoder differ."""
    state = start(config, sum(widths))
    generator = torch.Generator().manual_seed(7)
    for parameter, size in zip(state.model.parameters(), (0.4, 0.1, 0.4, 0.2), strict=True):
        parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return state


def _step(config: FitConfig, widths: list[int]) -> _Recording:
    return _Recording(config, widths, torch.cat([torch.full((d,), 1 / d) for d in widths]), n=10_000)


def _reference(
    state: FitState, x: Tensor, widths: list[int], k: int, dead: Tensor, aux_weight: float
) -> tuple[float, Gradients]:
    """Loss and gradients of DESIGN's formulas, dense and in float64: a full sort selects, autograd differentiates."""
    parameters = [p.double().clone().requires_grad_() for p in state.model.parameters()]
    encoder, encoder_bias, decoder, decoder_bias = parameters
    x = x.double()
    valid = torch.stack([~part.isnan().any(1) for part in x.split(widths, 1)], 1).double()  # [b, S]
    v = valid.repeat_interleave(torch.tensor(widths), 1)
    x = x.nan_to_num(0.0)
    weight = torch.cat([torch.full((d,), 1.0 / d, dtype=torch.float64) for d in widths])
    gain = len(widths) / valid.sum(1, keepdim=True)

    pre = (x * v * gain) @ encoder.T + encoder_bias
    scores = (pre.relu() * decoder.norm(dim=1)).detach()
    cut = scores.flatten().sort(descending=True).values[len(x) * k - 1]
    f = pre.relu() * ((scores >= cut) & (scores > 0))
    error = (f @ decoder + decoder_bias - x) * v
    loss = (error.square() * weight).sum(1).mean()

    total = loss
    if len(dead):
        sample = min(256, len(x))
        k_aux = min(len(dead), max(1, x.shape[1] // 2), 256)
        z = pre[:sample, dead].relu()
        kept = z * (z >= z.sort(1, descending=True).values[:, k_aux - 1 : k_aux])
        left = error[:sample].detach() + (kept @ decoder[dead]) * v[:sample]
        total = loss + aux_weight * (left.square() * weight).sum(1).mean()
    total.backward()
    return float(loss.detach()), [p.grad for p in parameters if p.grad is not None]


def _check(widths: list[int], k: int, *, invalid: bool, dead_share: float) -> None:
    m, b = 40, 300
    config = FitConfig(n_features=m, k=k, steps=1000, batch_size=b)
    state, step = _state(config, widths), _step(config, widths)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(b, sum(widths), generator=generator)
    if invalid:  # a third of the positions lacks one source
        for source, part in enumerate(x.split(widths, 1)):
            part[source :: 3 * len(widths)] = torch.nan
    dead = (torch.rand(m, generator=generator) < dead_share).nonzero().squeeze(1)
    state.model.decoder[dead] *= 0.02  # their scores are too small to be selected: they stay dead through the step
    state.silent[dead] = 10**9
    loss, gradients = _reference(state, x, widths, k, dead, config.aux_weight)
    assert step(state, x) == pytest.approx(loss, rel=1e-5)
    assert len(dead) == 0 or int((state.silent >= step.dead_after).sum()) == len(dead)
    for name, got, wanted in zip(("encoder", "encoder bias", "decoder", "decoder bias"), step.gradients, gradients,
                                 strict=True):  # fmt: skip
        np.testing.assert_allclose(got, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=1e-4, err_msg=name)
        assert float(wanted.abs().max()) > 0


@pytest.mark.parametrize("widths", [[12], [6, 6], [3, 12, 7]], ids=str)
@pytest.mark.parametrize("k", [2, 9])
def test_loss_and_gradients(widths: list[int], k: int) -> None:
    _check(widths, k, invalid=False, dead_share=0.0)


@pytest.mark.parametrize("widths", [[6, 6], [3, 12, 7]], ids=str)
def test_invalid_sources_weigh_nothing_and_the_others_stand_in(widths: list[int]) -> None:
    _check(widths, 4, invalid=True, dead_share=0.0)


@pytest.mark.parametrize("invalid", [False, True])
def test_auxk_reaches_the_gradients(invalid: bool) -> None:
    _check([3, 12, 7], 4, invalid=invalid, dead_share=0.4)


def test_auxk_gradient_of_dead_latents_is_not_zero() -> None:
    """Without it a dead latent gets no gradient at all: it is not selected."""
    config = FitConfig(n_features=20, k=2, steps=1000, batch_size=100)
    for silent, alive in ((0, False), (10**9, True)):
        state, step = _state(config, [10]), _step(config, [10])
        state.model.decoder[:5] *= 1e-3  # scores too small to be selected, pre-activations large enough for AuxK
        state.silent[:5] = silent
        step(state, torch.randn(100, 10, generator=torch.Generator().manual_seed(0)))
        assert (float(step.gradients[0][:5].abs().max()) > 0) == alive
        assert (float(step.gradients[2][:5].abs().max()) > 0) == alive


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 3), st.integers(1, 60), st.floats(-2, 1))
def test_select_is_a_full_sort(seed: int, stale: float, count: int, shift: float) -> None:
    """Exactly the largest scores, whatever threshold the last step left, and nothing that is not positive."""
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(12, 9, generator=generator) + shift
    norms = 0.2 + torch.rand(9, generator=generator)
    rows, latents, values, cut = select(pre, norms, count, stale)
    scores = (pre * norms).double()
    ranked = sorted((s, r, i) for r, line in enumerate(scores.tolist()) for i, s in enumerate(line) if s > 0)[::-1]
    wanted = sorted((r, i) for _, r, i in ranked[:count])
    assert list(zip(rows.tolist(), latents.tolist(), strict=True)) == wanted
    assert bool((values > 0).all())
    torch.testing.assert_close(values, pre[rows, latents], rtol=0, atol=0)
    assert cut == pytest.approx(ranked[min(count, len(ranked)) - 1][0] if ranked else 0.0, rel=1e-6)


def test_select_takes_no_more_than_asked_where_positions_repeat() -> None:
    """The same text at two positions gives the same scores: a tie at the threshold is cut, not kept whole."""
    pre = torch.tensor([[3.0, 1.0, 2.0]]).repeat(4, 1)
    for cut in (0.0, 2.0, 50.0):
        rows, latents, _, threshold = select(pre, torch.ones(3), 6, cut)
        assert len(rows) == 6
        assert (latents == 0).sum() == 4
        assert (latents == 2).sum() == 2
        assert threshold == 2.0
        assert rows.tolist() == sorted(rows.tolist())


def test_a_stale_threshold_changes_nothing_in_a_step() -> None:
    config = FitConfig(n_features=30, k=3, steps=100, batch_size=64)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    seen = []
    for cut in (0.0, 0.01, 1.0, 1e6):
        state, step = _state(config, [8]), _step(config, [8])
        state.cut = cut
        loss = step(state, x)
        seen.append((loss, state.cut, *[g.tolist() for g in step.gradients]))
    assert seen[1:] == seen[:1] * 3


def test_adam_is_torch_s() -> None:
    config = FitConfig(n_features=30, k=3, steps=40, batch_size=64, resample_every=0, warmup=0, decay=1e-9)
    state, step = _state(config, [8]), _Step(config, [8], torch.full((8,), 1 / 8), n=64)
    ours, theirs = state.model.parameters(), [p.double().clone().requires_grad_() for p in state.model.parameters()]
    optimiser = torch.optim.Adam(theirs, lr=config.learning_rate)
    generator = torch.Generator().manual_seed(0)
    for state.step in range(12):
        gradients = [torch.randn(p.shape, generator=generator) * 10 ** (-state.step / 3) for p in ours]
        for p, g in zip(theirs, gradients, strict=True):
            p.grad = g.double()
        step._adam(state, gradients)
        optimiser.step()
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p, q.detach(), atol=1e-5)


@given(st.integers(10, 5000), st.floats(0, 0.4), st.floats(0.01, 0.6))
def test_learning_rate_rises_holds_and_falls_to_nearly_nothing(steps: int, warmup: float, decay: float) -> None:
    config = FitConfig(n_features=1, steps=steps, learning_rate=1.0, warmup=warmup, decay=decay)
    rates = [learning_rate_at(config, step) for step in range(steps)]
    assert max(rates) == 1.0
    assert min(rates) > 0
    top = rates.index(1.0)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[0] == pytest.approx(min(1.0, 1 / max(1.0, warmup * steps)))
    assert rates[-1] == pytest.approx(min(1.0, 1 / max(1.0, decay * steps)))


@given(st.integers(1, 200), st.integers(1, 250), st.integers(0, 3))
def test_rows_come_once_a_pass(n: int, batch: int, seed: int) -> None:
    """A pass is n // batch whole batches of one shuffled order; what is left over is another rest in every pass."""
    config = FitConfig(n_features=1, batch_size=batch, seed=seed)
    size = min(batch, n)
    per_pass = n // size
    for number in range(2):
        rows = [rows_at(config, number * per_pass + place, n) for place in range(per_pass)]
        assert all(part.tolist() == sorted(part.tolist()) and len(part) == size for part in rows)
        seen = torch.cat(rows).tolist()
        assert len(set(seen)) == len(seen) == per_pass * size
        assert set(seen) <= set(range(n))
        if n % size == 0:
            assert sorted(seen) == list(range(n))


def test_rows_depend_on_seed_pass_and_step_alone() -> None:
    config, other = (FitConfig(n_features=1, batch_size=10, seed=seed) for seed in (1, 2))
    assert rows_at(config, 7, 100).tolist() == rows_at(config, 7, 100).tolist()
    assert rows_at(config, 7, 100).tolist() != rows_at(other, 7, 100).tolist()
    assert rows_at(config, 7, 100).tolist() != rows_at(config, 17, 100).tolist()
