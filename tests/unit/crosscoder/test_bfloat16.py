"""The encoder's product in bfloat16, as on hardware that computes in it: the same fit but for rounding."""

import pytest
import torch

from tests.unit.crosscoder.planted import dense_code, directions, held
from workers.crosscoder.config import FitConfig, Layout
from workers.crosscoder.fit import fit
from workers.crosscoder.select import PreActivations, Scratch


def test_pre_activations_are_rounded_and_kept_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    x, encoder = torch.randn(30, 16, generator=generator), torch.randn(24, 16, generator=generator)
    bias = torch.randn(24, generator=generator)
    exact, low = (
        next(PreActivations(x, encoder, bias, Scratch(dtype)).blocks()) for dtype in (torch.float32, torch.bfloat16)
    )
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, rtol=0, atol=float((exact - bias).abs().max()) * 2**-7)
    assert not torch.equal(low, exact)


@pytest.mark.parametrize("sparsity", ["batch_topk", "topk"])
def test_a_fit_in_bfloat16_ends_where_one_in_float32_does(sparsity: str) -> None:
    x = dense_code(4000, 48, 3 / 48, seed=3) @ directions(48, 32, seed=1)
    read = held((x - x.mean(0)) * (32 / (x - x.mean(0)).var(0).sum()) ** 0.5)
    config = FitConfig(64, k=3, steps=300, batch_size=256, learning_rate=5e-3, sparsity=sparsity)  # type: ignore[arg-type]
    losses = [
        sum(fit(read, 4000, Layout((32,)), config, encode_dtype=dtype).losses[-20:]) / 20
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert losses[1] < 1.15 * losses[0] < 0.2
