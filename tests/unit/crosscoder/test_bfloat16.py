"""The large products in bfloat16, as on hardware that computes in it: the same fit but for rounding."""

import pytest
import torch

from featurewatch.workers.crosscoder.config import FitConfig, Layout
from featurewatch.workers.crosscoder.fit import fit, start
from featurewatch.workers.crosscoder.fit.gradients import gradients, view
from featurewatch.workers.crosscoder.kernels import entries_over
from featurewatch.workers.crosscoder.parallel import Parallel
from featurewatch.workers.crosscoder.preactivations import PreActivations, Scratch
from tests.unit.crosscoder.planted import dense_code, directions, held


def test_pre_activations_are_rounded() -> None:
    generator = torch.Generator().manual_seed(0)
    x, encoder = torch.randn(30, 16, generator=generator), torch.randn(24, 16, generator=generator)
    bias = torch.randn(24, generator=generator)
    exact, low = (
        next(PreActivations(x, encoder, bias, Scratch(dtype)).blocks()) for dtype in (torch.float32, torch.bfloat16)
    )
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), exact, rtol=0, atol=float((exact - bias).abs().max()) * 2**-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entries_over_a_floor_are_those_of_a_comparison(dtype: torch.dtype) -> None:
    """Also where floors are below zero, on the grid of bfloat16 or beside it, zero of either sign, or infinite."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(400, 12, generator=generator).to(dtype)
    values[::7] = 0.0
    values[1::7] = -0.0
    floor = torch.randn(12, generator=generator)
    floor[:4] = values[2, :4].float()
    floor[4:8] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf])
    floor[8:10] = torch.tensor([-1e-30, 1e-30])
    found = entries_over(values, floor, torch.empty(400, 12, dtype=torch.bool))
    assert found.tolist() == (values.float() > floor).flatten().nonzero().flatten().tolist()


def test_gradients_are_rounded() -> None:
    x = torch.from_numpy(dense_code(512, 48, 3 / 48, seed=3) @ directions(48, 32, seed=1)).float()
    config = FitConfig(64, k=3, batch_size=512)
    model = start(config, Layout((32,))).model
    pre = PreActivations(x, model.encoder, model.encoder_bias, Scratch())
    selection = model.sparsity.select(model, pre, 0.0, len(x), Parallel())
    exact, low = (
        gradients(model, view(model, x, None), selection, torch.ones(32), 0.0, len(x), Parallel(), dtype).gradients
        for dtype in (torch.float32, torch.bfloat16)
    )
    for one, other in zip(exact, low, strict=True):
        assert other.dtype == torch.float32
        torch.testing.assert_close(other, one, rtol=0, atol=float(one.abs().max()) * 2**-6)
    assert not torch.equal(exact[0], low[0])
    assert not torch.equal(exact[2], low[2])


@pytest.mark.parametrize("sparsity", ["batch_topk", "topk"])
def test_a_fit_in_bfloat16_ends_where_one_in_float32_does(sparsity: str) -> None:
    x = dense_code(4000, 48, 3 / 48, seed=3) @ directions(48, 32, seed=1)
    read = held((x - x.mean(0)) * (32 / (x - x.mean(0)).var(0).sum()) ** 0.5)
    config = FitConfig(64, k=3, steps=300, batch_size=256, learning_rate=5e-3, sparsity=sparsity)
    losses = [
        sum(fit(read, 4000, Layout((32,)), config, compute_dtype=dtype).losses[-20:]) / 20
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert losses[1] < 1.15 * losses[0] < 0.2
