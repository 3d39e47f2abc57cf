"""Selections against full sorts and plain comparisons; the options of the API."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from featurewatch.service.families.schemas import CrosscoderOptions
from featurewatch.workers.crosscoder import preactivations, sparsity
from featurewatch.workers.crosscoder.config import FitConfig
from featurewatch.workers.crosscoder.parallel import Parallel
from featurewatch.workers.crosscoder.preactivations import PreActivations
from featurewatch.workers.crosscoder.sparsity import Selection

seeds = st.integers(0, 2**32 - 1)


def given_pre(pre: Tensor) -> PreActivations:
    """Pre-activations that are these numbers."""
    return PreActivations(pre, torch.eye(pre.shape[1]), torch.zeros(pre.shape[1]), preactivations.Scratch())


def entries(chosen: Selection) -> list[tuple[int, int]]:
    """(row, latent) of the code's entries, in its order; also that it is well formed."""
    code = chosen.code
    rows = torch.arange(code.n).repeat_interleave(code.indptr.diff())
    assert len(code.latents) == len(code.values) == len(chosen.pre) == int(code.indptr[-1])
    found = list(zip(rows.tolist(), code.latents.tolist(), strict=True))
    assert found == sorted(set(found))
    return found


def ranked(scores: Tensor) -> list[tuple[float, int, int]]:
    """(score, row, latent) of positive scores, the largest first."""
    return sorted((s, r, i) for r, line in enumerate(scores.tolist()) for i, s in enumerate(line) if s > 0)[::-1]


@settings(max_examples=150, deadline=None)
@given(seeds, st.floats(0, 3), st.integers(1, 60), st.floats(-2, 1))
def test_batch_topk_is_a_full_sort(seed: int, stale: float, count: int, shift: float) -> None:
    """Exactly the largest scores, whatever threshold the last step left, and nothing that is not positive."""
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(12, 9, generator=generator) + shift
    weights = 0.2 + torch.rand(9, generator=generator)
    chosen = sparsity.batch_topk(given_pre(pre), weights, count, stale, Parallel())
    order = ranked((pre * weights).double())
    assert entries(chosen) == sorted((r, i) for _, r, i in order[:count])
    rows, latents = (torch.tensor(part, dtype=torch.int64) for part in zip(*entries(chosen), strict=True)) \
        if order else (torch.zeros(0, dtype=torch.int64),) * 2  # fmt: skip
    assert bool((chosen.code.values > 0).all())
    torch.testing.assert_close(chosen.code.values, pre[rows, latents], rtol=0, atol=0)
    assert chosen.cut == pytest.approx(order[min(count, len(order)) - 1][0] if order else 0.0, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 9), st.floats(-2, 1))
def test_topk_is_a_sort_of_each_row(seed: int, k: int, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(12, 9, generator=generator) + shift
    weights = 0.2 + torch.rand(9, generator=generator)
    chosen = sparsity.topk(given_pre(pre), weights, k, Parallel())
    wanted = [(r, i) for row in range(12) for _, _, i in ranked((pre * weights)[row : row + 1])[:k] for r in [row]]
    assert entries(chosen) == sorted(wanted)
    assert bool((chosen.code.values > 0).all())


@settings(max_examples=60, deadline=None)
@given(seeds, st.floats(0.01, 1.5))
def test_relu_and_jumprelu_are_comparisons(seed: int, bandwidth: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(12, 9, generator=generator)
    floor = 0.1 + torch.rand(9, generator=generator)
    assert entries(sparsity.relu(given_pre(pre))) == [(int(r), int(i)) for r, i in (pre > 0).nonzero()]
    chosen = sparsity.jumprelu(given_pre(pre), floor, bandwidth)
    found = entries(chosen)
    assert found == [(int(r), int(i)) for r, i in (pre > floor * (1 - bandwidth / 2)).nonzero()]
    for (row, latent), value, before in zip(found, chosen.code.values.tolist(), chosen.pre.tolist(), strict=True):
        assert before == float(pre[row, latent])
        assert value == (before if before > float(floor[latent]) else 0.0)


def test_batch_topk_takes_no_more_than_asked_where_positions_repeat() -> None:
    """The same text at two positions gives the same scores: a tie at the threshold is cut, not kept whole."""
    pre = torch.tensor([[3.0, 1.0, 2.0]]).repeat(4, 1)
    for cut in (0.0, 2.0, 50.0):
        chosen = sparsity.batch_topk(given_pre(pre), torch.ones(3), 6, cut, Parallel())
        assert chosen.code.latents.tolist().count(0) == 4
        assert chosen.code.latents.tolist().count(2) == 2
        assert len(entries(chosen)) == 6
        assert chosen.cut == 2.0


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 300])
def test_blocks_change_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is looked through in blocks of 64 rows gives what it gives in one."""
    generator = torch.Generator().manual_seed(0)
    x, encoder = torch.randn(rows, 6, generator=generator), torch.randn(20, 6, generator=generator)
    pre = PreActivations(x, encoder, torch.randn(20, generator=generator), preactivations.Scratch())
    weights = 0.5 + torch.rand(20, generator=generator)

    def all_of_them() -> list[Selection]:
        return [
            sparsity.batch_topk(pre, weights, 3 * rows, 0.0, Parallel()),
            sparsity.topk(pre, weights, 3, Parallel()),
            sparsity.relu(pre),
            sparsity.jumprelu(pre, weights, 0.5),
        ]

    whole = all_of_them()
    monkeypatch.setattr(preactivations, "BLOCK_BYTES", 1)
    for a, b in zip(whole, all_of_them(), strict=True):
        assert entries(a) == entries(b)
        torch.testing.assert_close(a.code.values, b.code.values)
        assert a.cut == pytest.approx(b.cut)


def test_the_api_offers_every_sparsity() -> None:
    options = CrosscoderOptions.model_fields["sparsity"].annotation
    assert get_args(options) == tuple(sparsity.SPARSITIES)


@pytest.mark.parametrize(("name", "function"), sparsity.SPARSITIES.items())
def test_the_api_takes_a_weight_where_there_is_a_penalty(name: str, function: sparsity.Sparsity) -> None:
    if isinstance(function, sparsity.Penalised):
        assert CrosscoderOptions(sparsity=name, sparsity_weight=0.1).sparsity_weight == 0.1  # type: ignore[arg-type]
    else:
        with pytest.raises(ValueError, match="sparsity_weight"):
            CrosscoderOptions(sparsity=name, sparsity_weight=0.1)  # type: ignore[arg-type]


def test_an_unknown_sparsity_is_refused() -> None:
    with pytest.raises(ValueError, match=f"unknown sparsity 'l2'; choose from {', '.join(sparsity.SPARSITIES)}"):
        FitConfig(n_features=6, k=2, sparsity="l2")
