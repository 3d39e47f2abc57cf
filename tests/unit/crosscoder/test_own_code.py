"""Own codes: where features are active, read from one checkpoint's activations alone."""

import numpy as np
import pytest
import torch
from torch import Tensor

from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.own_code import (
    DEVIATIONS,
    FIRST_STEPS,
    LAST_STEPS,
    RATIO,
    STEPS,
    OwnCoder,
    noise_threshold,
)
from tests.unit.crosscoder.planted import dense_code, directions, rotation

M, D, N, RATE, NOISE = 200, 96, 3000, 0.02, 0.03
THRESHOLD = DEVIATIONS * NOISE
BIAS = torch.linspace(-1, 1, D)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return dense_code(N, M, RATE, seed=0)


def _rows(m: int = M, d: int = D) -> Tensor:
    return torch.from_numpy(directions(m, d, seed=1)).float()


def _activations(code: np.ndarray, rows: Tensor, bias: Tensor = BIAS, noise: float = NOISE) -> Tensor:
    draws = np.random.default_rng(2).standard_normal((len(code), rows.shape[1]))
    return torch.from_numpy(code @ rows.double().numpy() + noise * draws).float() + bias


def _read(x: Tensor, rows: Tensor | None = None, bias: Tensor = BIAS, threshold: float = THRESHOLD) -> Code:
    return OwnCoder(_rows() if rows is None else rows, bias, threshold)(x)


def _dense(code: Code) -> np.ndarray:
    return code.to_scipy().toarray()


def _same(a: Code, b: Code) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("indptr", "latents", "values"))


def test_planted_activations_are_found(truth: np.ndarray) -> None:
    code = _dense(_read(_activations(truth, _rows())))
    active, there = code > 0, truth > 0
    assert (active & there).sum() > 0.99 * there.sum()
    assert (active & there).sum() > 0.95 * active.sum()
    both = active & there
    assert np.abs(code[both] - truth[both]).mean() < 0.05
    assert np.quantile(np.abs(code[both] - truth[both]), 0.99) < 0.3


def test_the_code_is_a_matrix_of_visible_activations(truth: np.ndarray) -> None:
    code = _read(_activations(truth, _rows()))
    assert (code.n, code.m) == (N, M)
    assert code.values.dtype == torch.float32
    assert code.values.min() >= np.float32(THRESHOLD)
    assert all(row.diff().gt(0).all() for row in code.latents.tensor_split(code.indptr[1:-1]))  # ascending in a row


def test_noise_alone_activates_next_to_nothing() -> None:
    """A coordinate of noise exceeds four standard deviations once in 31,600."""
    code = _read(_activations(np.zeros((N, M)), _rows()))
    assert len(code.values) < 3 * N * M / 31_600


@pytest.mark.parametrize("n", [1, 2, 3, 5, 63, 64, 65, 2047, 2048, 2049])
def test_a_position_s_code_does_not_depend_on_the_others(truth: np.ndarray, n: int) -> None:
    """Not on their number, their order or what is active there. Bit for bit, also over the edges of blocks."""
    x = _activations(truth, _rows())
    whole = _read(x)
    assert _same(_read(x[:n]), whole.rows(0, n))
    assert _same(_read(x[N - n :]), whole.rows(N - n, N))
    assert _same(_read(torch.cat([100 * x[n:].flip(0), x[:n]])).rows(N - n, N), whole.rows(0, n))


def test_reading_twice_gives_the_same_bits(truth: np.ndarray) -> None:
    x = _activations(truth, _rows())
    coder = OwnCoder(_rows(), BIAS, THRESHOLD)
    first = coder(x)
    coder(50 * torch.ones(N, D))  # its scratch memory holds nothing that the next code reads
    assert _same(first, coder(x))
    assert _same(first, _read(x.clone()))


@pytest.mark.parametrize("basis", ["permuted", "rotated"])
def test_another_basis_with_mapped_rows_has_the_same_active_set(truth: np.ndarray, basis: str) -> None:
    x = _activations(truth, _rows())
    turn = rotation(D, seed=3) if basis == "rotated" else np.eye(D)[np.random.default_rng(4).permutation(D)]
    r = torch.from_numpy(turn)
    turned = [(part.double() @ r).float() for part in (x, _rows(), BIAS[None])]
    code, other = _read(x), _read(turned[0], turned[1], turned[2][0])
    different = (_dense(code) > 0) ^ (_dense(other) > 0)
    assert different.sum() <= 1e-4 * len(code.values)  # float32 noise decides entries on the threshold
    kept = ~different
    np.testing.assert_allclose(_dense(code)[kept], _dense(other)[kept], atol=1e-3)


def test_latents_in_another_order_are_the_same_latents(truth: np.ndarray) -> None:
    x, order = _activations(truth, _rows()), torch.from_numpy(np.random.default_rng(5).permutation(M))
    code, other = _dense(_read(x)), _dense(_read(x, _rows()[order]))
    assert ((code[:, order.numpy()] > 0) ^ (other > 0)).sum() <= 1e-4 * (code > 0).sum()


@pytest.mark.parametrize("factor", [2.0, 5.0])
def test_a_growing_feature_does_not_push_others_out(truth: np.ndarray, factor: float) -> None:
    """What it adds to features that overlap with it stays under the default `places_floor`."""
    grown = truth.copy()
    grown[:, 7] *= factor
    before, after = (_dense(_read(_activations(code, _rows()))) for code in (truth, grown))
    where, others = truth[:, 7] > 0, np.arange(M) != 7
    assert after[where, 7].all()
    kept = ((before > 0) & (after > 0))[where][:, others].sum()
    assert kept >= 0.98 * (before > 0)[where][:, others].sum()
    assert (before == after)[~where].all()
    gained = np.where(before == 0, after, 0).sum(0) / before.sum(0)
    assert gained.max() < 0.1


def test_more_active_features_do_not_take_each_other_s_place(truth: np.ndarray) -> None:
    """A fixed number of active latents would. Here the count follows what is there."""
    twice = truth + dense_code(N, M, RATE, seed=6) * (truth == 0)
    code = _dense(_read(_activations(twice, _rows()))) > 0
    assert (code & (twice > 0)).sum() > 0.97 * (twice > 0).sum()


def test_zero_rows_are_never_active(truth: np.ndarray) -> None:
    rows = _rows()
    rows[::3] = 0
    code = _read(_activations(truth, _rows()), rows)
    assert len(code.values)
    assert (code.latents % 3 != 0).all()
    assert not len(_read(_activations(truth, _rows()), torch.zeros(M, D)).values)


def test_no_positions_and_empty_positions() -> None:
    code = _read(torch.zeros(0, D))
    assert code.indptr.tolist() == [0]
    assert len(code.values) == 0
    assert _read(BIAS.expand(5, D)).indptr.tolist() == [0] * 6


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan"), float("inf")])
def test_thresholds_that_cannot_be(threshold: float) -> None:
    with pytest.raises(ValueError, match="must be positive and finite"):
        OwnCoder(_rows(), BIAS, threshold)


def test_the_threshold_is_four_deviations_of_the_residual() -> None:
    residual = 0.3 * torch.randn(4000, 50, generator=torch.Generator().manual_seed(0))
    assert noise_threshold(residual.split(700)) == pytest.approx(DEVIATIONS * 0.3, rel=0.01)
    assert noise_threshold([residual]) == pytest.approx(noise_threshold(residual.split(17)), rel=1e-9)
    for nothing in ([], [torch.zeros(0, 50)]):
        with pytest.raises(ValueError, match="without positions"):
            noise_threshold(nothing)


def _pursue(x: np.ndarray, f: np.ndarray, rows: np.ndarray, active: np.ndarray, steps: int) -> np.ndarray:
    """Gradient pursuit on active entries, [n, m] each."""
    for _ in range(steps):
        residual = x - f @ rows
        step = np.where(active, np.maximum(residual @ rows.T, -f), 0)
        written = step @ rows
        length = (residual * written).sum(1) / np.maximum(np.square(written).sum(1), 1e-30)
        f = f + np.clip(length, 0, 1)[:, None] * step
    return f


def _start(x: np.ndarray, scores: np.ndarray, rows: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Scores as activations, scaled by the best length."""
    f = np.where(active, scores, 0)
    written = f @ rows
    length = (x * written).sum(1) / np.maximum(np.square(written).sum(1), 1e-30)
    return f * np.clip(length, 0, 1)[:, None]


def _reference(x: np.ndarray, rows: np.ndarray, threshold: float) -> np.ndarray:
    """The four steps of the procedure, dense and in float64."""
    scores = x @ rows.T
    active = scores >= np.maximum(threshold, RATIO * scores.max(1, keepdims=True))
    f = _pursue(x, _start(x, scores, rows, active), rows, active, FIRST_STEPS - 1)
    scores = f + (x - f @ rows) @ rows.T
    active = scores >= threshold
    f = _pursue(x, _start(x, scores, rows, active), rows, active, STEPS - 1)
    active = f >= threshold
    f = _pursue(x, np.where(active, f, 0), rows, active, LAST_STEPS)
    return np.where(f >= threshold, f, 0)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_four_steps(seed: int) -> None:
    """Strongly overlapping rows, many active at a time, so that every step changes something."""
    code, rows = dense_code(400, 60, 0.08, seed), _rows(60, 24)
    x = _activations(code, rows, torch.zeros(24), noise=0.1)
    wanted = _reference(x.double().numpy(), rows.double().numpy(), 0.4)
    got = _dense(_read(x, rows, torch.zeros(24), 0.4))
    assert (wanted > 0).sum() > 1000
    assert ((got > 0) == (wanted > 0)).all()
    np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_reads_the_same_code(truth: np.ndarray) -> None:
    x = _activations(truth, _rows())
    here, there = _read(x), OwnCoder(_rows().cuda(), BIAS.cuda(), THRESHOLD)(x.cuda())
    assert ((_dense(here) > 0) ^ (_dense(there) > 0)).sum() <= 1e-4 * len(here.values)
