"""One step of the fit: gradients and AuxK, Adam, the schedule, silence, and options that are no fit."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featurewatch.workers.crosscoder.config import FitConfig, Layout
from featurewatch.workers.crosscoder.fit import Step, fit, learning_rate_at, start
from featurewatch.workers.crosscoder.parallel import Parallel
from featurewatch.workers.crosscoder.sparsity import SPARSITIES
from tests.unit.crosscoder.reference import Recording, away_from_start, compare


@pytest.mark.parametrize("widths", [(12,), (6, 6), (3, 12, 7)], ids=str)
@pytest.mark.parametrize("k", [2, 9])
def test_loss_and_gradients(widths: tuple[int, ...], k: int) -> None:
    compare(FitConfig(n_features=40, k=k, steps=1000, batch_size=300), Layout(widths), b=300)


def test_auxk_gradient_of_dead_latents_is_not_zero() -> None:
    """Without it a dead latent gets no gradient at all: it is not selected."""
    config = FitConfig(n_features=20, k=2, steps=1000, batch_size=100)
    for silent, alive in ((0, False), (10**9, True)):
        state, step = away_from_start(config, Layout((10,))), Recording(config, Layout((10,)), 100, Parallel())
        state.model.decoder[:5] *= 1e-3  # scores too small to be selected, pre-activations large enough for AuxK
        state.silent[:5] = silent
        step(state, torch.randn(100, 10, generator=torch.Generator().manual_seed(0)))
        assert (float(step.gradients[0][:5].abs().max()) > 0) == alive
        assert (float(step.gradients[2][:5].abs().max()) > 0) == alive


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_a_stale_threshold_changes_nothing_in_a_step(sparsity: str) -> None:
    config = FitConfig(n_features=30, k=3, steps=100, batch_size=64, sparsity=sparsity)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    seen = []
    for cut in (0.0, 0.01, 1.0, 1e6):
        state, step = away_from_start(config, Layout((8,))), Recording(config, Layout((8,)), 64, Parallel())
        state.cut = cut
        step(state, x)
        seen.append((state.losses, state.cut, *[g.tolist() for g in step.gradients]))
    assert seen[1:] == seen[:1] * 3


@pytest.mark.parametrize("sparsity", ["batch_topk", "jumprelu"])
def test_adam_is_torch_s(sparsity: str) -> None:
    config = FitConfig(n_features=30, k=3, steps=40, batch_size=64, resample_every=0, warmup=0, decay=1e-9,
                       sparsity=sparsity)  # type: ignore[arg-type]  # fmt: skip
    state, step = start(config, Layout((8,))), Step(config, Layout((8,)), 64, Parallel())
    ours = state.model.parameters()
    assert len(ours) == len(state.moments) == (5 if sparsity == "jumprelu" else 4)
    theirs = [p.double().clone().requires_grad_() for p in ours]
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
    config = FitConfig(n_features=1, k=1, steps=steps, learning_rate=1.0, warmup=warmup, decay=decay)
    rates = [learning_rate_at(config, step) for step in range(steps)]
    assert max(rates) == 1.0
    assert min(rates) > 0
    top = rates.index(1.0)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[0] == pytest.approx(min(1.0, 1 / max(1.0, warmup * steps)))
    assert rates[-1] == pytest.approx(min(1.0, 1 / max(1.0, decay * steps)))


def test_silence_is_counted_in_positions_and_ends_with_a_firing() -> None:
    config = FitConfig(n_features=20, k=2, steps=1000, batch_size=100)
    state, step = away_from_start(config, Layout((10,))), Recording(config, Layout((10,)), 100, Parallel())
    state.model.encoder_bias[:4] = -100.0
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        step(state, torch.randn(100, 10, generator=generator))
    assert state.silent[:4].tolist() == [300] * 4
    assert int(state.silent[4:].min()) == 0
    assert int(state.fired.sum()) == 3 * 100 * 2
    assert state.fired[:4].tolist() == [0] * 4


@pytest.mark.parametrize("sparsity", ["l1", "jumprelu"])
def test_lambda_stays_where_it_was_set(sparsity: str) -> None:
    config = FitConfig(n_features=30, k=3, steps=10, batch_size=64, sparsity=sparsity, sparsity_weight=0.7)
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    penalties: list[float] = []
    fit(lambda rows: x[rows], 500, Layout((8,)), config, on_step=lambda state: penalties.append(state.penalty))
    assert penalties == [0.7] * 10


@pytest.mark.parametrize(
    "options",
    [
        {"k": 0},
        {"k": 31},
        {"prefixes": (5, 5)},
        {"prefixes": (0,)},
        {"prefixes": (30,)},
        {"designated": 20, "dedicated": (6, 5)},
        {"decoder": "shared", "designated": 1},
        {"decoder": "shared", "dedicated": (1,)},
        {"source_dropout": 1.0},
    ],
    ids=str,
)
def test_options_that_contradict_each_other(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"k is|prefixes|designated|source_dropout"):
        FitConfig(**{"n_features": 30, "k": 3} | options)


def test_dedicated_latents_need_a_count_for_each_checkpoint() -> None:
    config = FitConfig(n_features=30, k=3, dedicated=(2, 2))
    with pytest.raises(ValueError, match="there are 3"):
        start(config, Layout((2, 2, 2), (0, 1, 2)))


def test_a_shared_decoder_and_its_maps_come_together() -> None:
    with pytest.raises(ValueError, match="maps"):
        start(FitConfig(n_features=30, k=3, decoder="shared"), Layout((4, 4)))
    with pytest.raises(ValueError, match="maps"):
        start(FitConfig(n_features=30, k=3), Layout((4, 4)), maps=(torch.eye(4), torch.eye(4)))
