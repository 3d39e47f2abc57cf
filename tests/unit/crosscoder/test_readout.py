"""Read-outs of one source."""

import numpy as np
import pytest
import torch

from featurewatch.workers.crosscoder.regress import assign_folds
from featurewatch.workers.crosscoder.regress.readout import Readout, solve_readout
from tests.unit.crosscoder.planted import code_of, dense_code, directions, documents, held

N, M, D = 12_000, 12, 48


@pytest.fixture(scope="module")
def code() -> np.ndarray:
    """[N, 12] firing at 5% of the positions; latent 11 never does."""
    dense = dense_code(N, M, 0.05, seed=0)
    dense[:, 11] = 0.0
    return dense


def _solve(code: np.ndarray, levels: np.ndarray, most: int = 8192) -> tuple[Readout, np.ndarray, torch.Tensor]:
    rng = np.random.default_rng(1)
    x = code @ (directions(M, D, seed=2) * levels[:, None]) + 0.05 * rng.standard_normal((N, D))
    x -= x.mean(0)
    rows, folds = torch.arange(N), assign_folds(documents(N, 50), 20)
    return solve_readout(held(x), code_of(code), rows, folds, most=most), x, folds


def test_near_one_where_it_can_be_read_and_near_zero_where_it_was_removed(code: np.ndarray) -> None:
    levels = np.ones(M)
    levels[:3] = 0.0
    readability = _solve(code, levels)[0].readability.numpy()
    assert readability[3:11].min() > 0.9
    # About 2,000 of the 3,000 held-out positions' worth of noise: a correlation of nothing has sd 0.02.
    assert np.abs(readability[:3]).max() < 0.08
    assert np.isnan(readability[11])


def test_a_code_of_few_held_out_positions_says_so(code: np.ndarray) -> None:
    """What fires in three folds of four alone was never judged: NaN, not 0 or 1."""
    held_out = assign_folds(documents(N, 50), 20) % 4 == 3
    code = code.copy()
    code[held_out.numpy(), 5] = 0.0
    assert bool(_solve(code, np.ones(M))[0].readability[5].isnan())


def test_equals_ridge_offsets_and_correlation_in_float64(code: np.ndarray) -> None:
    got, x, folds = _solve(code, np.full(M, 0.3), most=N)
    held_out = (folds % 4 == 3).numpy()
    train, test = ~held_out, held_out
    square = x[train].T @ x[train]
    square += 1e-3 * np.diag(square).mean() * np.eye(D)
    weight = np.linalg.solve(square, x[train].T @ code[train])
    np.testing.assert_allclose(got.weight, weight, atol=1e-4 * np.abs(weight).max())
    output = x @ weight
    for i in range(11):
        ranked = np.sort(output[train, i])[::-1]
        assert float(got.bias[i]) == pytest.approx(-ranked[(code[train, i] > 0).sum() - 1], abs=1e-4)
        read = np.maximum(output[test, i] + float(got.bias[i]), 0)
        assert float(got.readability[i]) == pytest.approx(np.corrcoef(read, code[test, i])[0, 1], abs=1e-3)
        assert float(got.slope[i]) == pytest.approx(np.polyfit(code[test, i], read, 1)[0], abs=1e-3)


def test_held_out_positions_have_no_part_in_the_weights(code: np.ndarray) -> None:
    got, x, folds = _solve(code, np.ones(M))
    x[(folds % 4 == 3).numpy()] = 1e3 * np.random.default_rng(9).standard_normal((int((folds % 4 == 3).sum()), D))
    again = solve_readout(held(x), code_of(code), torch.arange(N), folds)
    assert torch.equal(got.weight, again.weight)
    assert torch.equal(got.bias, again.bias)
    assert float(again.readability[:11].abs().max()) < 0.15


def test_a_silent_read_out_reads_nothing(code: np.ndarray) -> None:
    """A source that is constant: its read-out can't vary, which is readability 0 and not an unknown."""
    got = solve_readout(held(np.zeros((N, D))), code_of(code), torch.arange(N), assign_folds(documents(N, 50), 20))
    assert got.readability[:11].tolist() == [0.0] * 11
