"""Normalisation of sources, against numpy in float64."""

import numpy as np
import pytest
import torch

from featurewatch.workers.crosscoder.config import FitConfig, Layout
from featurewatch.workers.crosscoder.fit import fit
from featurewatch.workers.crosscoder.model import Moments, Normaliser
from tests.unit.crosscoder.planted import held

WIDTHS = [5, 3, 8]


def _normaliser(x: np.ndarray, widths: list[int], block: int = 64) -> Normaliser:
    moments = Moments(widths)
    for start in range(0, len(x), block):
        moments.add(torch.from_numpy(x[start : start + block]))
    return moments.normaliser()


def _reference(x: np.ndarray, widths: list[int]) -> np.ndarray:
    """(x - mean) sqrt(d) / rms, source by source."""
    parts = []
    for part in np.split(x.astype(np.float64), np.cumsum(widths)[:-1], axis=1):
        centred = part - part.mean(0)
        parts.append(centred * np.sqrt(part.shape[1]) / np.sqrt((centred**2).sum(1).mean()))
    return np.hstack(parts)


def _sources(seed: int = 0, n: int = 300) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scales = np.repeat([1.0, 1e3, 1e-3], WIDTHS)
    return (rng.standard_normal((n, 16)) * scales + rng.standard_normal(16) * 10 * scales).astype(np.float32)


@pytest.mark.parametrize("block", [1, 64, 300])
def test_equals_the_formula(block: int) -> None:
    x = _sources()
    got = _normaliser(x, WIDTHS, block)(torch.from_numpy(x))
    np.testing.assert_allclose(got, _reference(x, WIDTHS), atol=2e-5)
    assert got.dtype == torch.float32


def test_every_source_weighs_the_same() -> None:
    """After it E||x_s||^2 = d_s, whatever the source's norm was: none dominates the loss."""
    x = _sources()
    got = _normaliser(x, WIDTHS)(torch.from_numpy(x)).double()
    for part, d in zip(got.split(WIDTHS, 1), WIDTHS, strict=True):
        assert float(part.square().sum(1).mean()) == pytest.approx(d, rel=1e-5)


def test_normalising_what_is_normalised_changes_nothing() -> None:
    x = _sources()
    once = _normaliser(x, WIDTHS)(torch.from_numpy(x))
    twice = _normaliser(once.numpy(), WIDTHS)(once)
    np.testing.assert_allclose(twice, once, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_type(dtype: torch.dtype) -> None:
    x = torch.from_numpy(_sources()[:, :5]).to(dtype)
    moments = Moments([5])
    moments.add(x)
    np.testing.assert_allclose(moments.normaliser()(x), _reference(x.double().numpy(), [5]), atol=2e-5)


def test_a_constant_source_stays_quiet() -> None:
    """Most numbers have no exact square: rounding in the sums must not be taken for variance and blown up to rms 1."""
    rng = np.random.default_rng(0)
    n, values = 60_000, np.concatenate([[0.0], 10.0 ** rng.uniform(-4, 4, 40)])
    x = np.hstack([np.tile(values, (n, 1)), rng.standard_normal((n, 3))]).astype(np.float32)
    got = _normaliser(x, [1] * 41 + [3], block=16_384)
    assert got.scale[:41].tolist() == [1.0] * 41
    np.testing.assert_allclose(got(torch.from_numpy(x[:5]))[:, :41].numpy() / (values + 1), 0, atol=1e-6)


def test_a_large_mean_does_not_hide_the_variance() -> None:
    """Residual streams have a few dimensions with a mean of thousands of deviations."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 6))
    x[:, 2] += 4000
    x = x.astype(np.float32)
    np.testing.assert_allclose(_normaliser(x, [6])(torch.from_numpy(x)), _reference(x, [6]), atol=5e-4)


def test_a_loud_source_is_reconstructed_no_better_than_a_quiet_one() -> None:
    """Two sources of the same kind, one 1000 times as loud: normalised, a fit explains both alike."""
    rng = np.random.default_rng(0)
    n, d, m = 4000, 16, 24
    code = np.where(rng.random((n, m)) < 0.08, 1 + rng.random((n, m)), 0)
    x = np.hstack([code @ rng.standard_normal((m, d)) * 1e3, code @ rng.standard_normal((m, d))]).astype(np.float32)
    read = held(_normaliser(x, [d, d])(torch.from_numpy(x)).numpy())
    state = fit(read, n, Layout((d, d)), FitConfig(n_features=48, k=3, steps=300, batch_size=256, learning_rate=5e-3))
    error = (state.model.reconstruct(state.model.encode(read.x)) - read.x).square().mean(0)
    loud, quiet = float(error[:d].mean()), float(error[d:].mean())
    # Unnormalised, the quiet source would be left as it is (share unexplained 1, against 0.05 of the loud one).
    assert max(loud, quiet) < 0.3
    assert max(loud, quiet) < 1.5 * min(loud, quiet)
