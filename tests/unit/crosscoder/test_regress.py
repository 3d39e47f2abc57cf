"""The ridge regression of activations on the code, against numpy in float64 and against real refits."""

import numpy as np
import pytest
import torch

from featurewatch.workers.crosscoder.regress import Regression, Solution, assign_folds, columns
from tests.unit.crosscoder.planted import code_of, dense_code, directions, documents, held, rotation

N, M, D = 3000, 20, 12


@pytest.fixture(scope="module")
def dense() -> np.ndarray:
    """[N, M]; latents 3 and 4 fire together, so that they are not independent."""
    code = dense_code(N, M, 0.1, seed=0)
    code[:, 4] = np.where(code[:, 3] > 0, 0.5 * code[:, 3] + 0.2 * code[:, 4], code[:, 4])
    return code.astype(np.float32).astype(np.float64)


@pytest.fixture(scope="module")
def x(dense: np.ndarray) -> np.ndarray:
    """[N, D] activations with a mean and noise that is shared by the positions of a document."""
    rng = np.random.default_rng(1)
    noise = 0.3 * rng.standard_normal((N, D)) + 0.3 * np.repeat(rng.standard_normal((N // 30, D)), 30, 0)
    return (dense @ directions(M, D, 2) + noise + rng.standard_normal(D)).astype(np.float32).astype(np.float64)


ROWS = torch.arange(N)[torch.arange(N) % 7 != 0]
FOLDS = assign_folds(documents(N, 30), 10)[ROWS]


def _ridge(dense: np.ndarray, x: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """(decoder, bias): intercept unpenalised, the penalty relative to the mean energy of a latent."""
    left = np.hstack([dense, np.ones((len(dense), 1))])
    square = left.T @ left
    energy = np.diag(square)[:-1]
    square[np.arange(len(energy)), np.arange(len(energy))] += ridge * energy[energy > 0].mean()
    solved = np.linalg.solve(square, left.T @ x)
    return solved[:-1], solved[-1]


@pytest.mark.parametrize("block", [100, 8192])
@pytest.mark.parametrize("ridge", [1e-4, 0.5])
def test_equals_ridge_with_an_intercept(dense: np.ndarray, x: np.ndarray, ridge: float, block: int) -> None:
    solution = Regression(code_of(dense), ROWS, FOLDS, ridge, block).solve(held(x))
    decoder, bias = _ridge(dense[ROWS], x[ROWS], ridge)
    np.testing.assert_allclose(solution.decoder, decoder, atol=2e-5)
    np.testing.assert_allclose(solution.bias, bias, atol=2e-5)


def test_equals_least_squares_without_a_ridge(dense: np.ndarray, x: np.ndarray) -> None:
    solution = Regression(code_of(dense), ROWS, FOLDS, ridge=0.0).solve(held(x))
    wanted = np.linalg.lstsq(np.hstack([dense, np.ones((N, 1))])[ROWS], x[ROWS], rcond=None)[0]
    np.testing.assert_allclose(np.vstack([solution.decoder, solution.bias]), wanted, atol=2e-5)


def test_nothing_shrinks(dense: np.ndarray) -> None:
    """Without noise the decoder is the planted one to the ridge's 1e-4: a sparsity term would take its share."""
    planted = directions(M, D, 2)
    solution = Regression(code_of(dense), ROWS, FOLDS).solve(held(dense @ planted))
    ratio = np.linalg.norm(solution.decoder, axis=1) / np.linalg.norm(planted, axis=1)
    assert np.abs(ratio - 1).max() < 2e-3


def test_latents_that_never_fire_get_zero(dense: np.ndarray, x: np.ndarray) -> None:
    dense = dense.copy()
    dense[:, 7] = 0.0
    solution = Regression(code_of(dense), ROWS, FOLDS, ridge=1e-4).solve(held(x))
    assert solution.decoder[7].abs().max() == 0
    decoder, _ = _ridge(dense[ROWS], x[ROWS], 1e-4)
    np.testing.assert_allclose(solution.decoder, decoder, atol=2e-5)


def test_twins_that_fire_all_the_time_can_be_solved() -> None:
    """Two latents with one code of large energy beside many rare ones: rounding must not reach the ridge."""
    code = dense_code(N, M, 0.002, seed=5)
    code[:, 0] = 30 + 20 * np.random.default_rng(0).random(N)
    code[:, 1] = code[:, 0]
    solution = Regression(code_of(code), ROWS, FOLDS, ridge=1e-6).solve(held(code @ directions(M, D, 2)))
    np.testing.assert_allclose(solution.decoder[0] + solution.decoder[1], directions(M, D, 2)[:2].sum(0), atol=1e-3)


def _close(a: Solution, b: Solution) -> None:
    torch.testing.assert_close(a.decoder, b.decoder, atol=2e-5, rtol=0)
    torch.testing.assert_close(a.bias, b.bias, atol=2e-5, rtol=0)
    torch.testing.assert_close(a.right, b.right, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("first", [0, 1, 13, M])
def test_extended_equals_a_fresh_one_and_known_columns_cost_no_accuracy(
    dense: np.ndarray, x: np.ndarray, first: int
) -> None:
    wide, read = code_of(dense), held(x)
    narrow = Regression(columns(wide, 0, first), ROWS, FOLDS)
    fresh, extended = Regression(wide, ROWS, FOLDS), narrow.extended(wide)
    torch.testing.assert_close(extended.left.square, fresh.left.square, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(extended.energy, fresh.energy)
    torch.testing.assert_close(extended.leverage, fresh.leverage)
    assert (extended.count, extended.m, extended.n_folds) == (fresh.count, fresh.m, fresh.n_folds)
    _close(extended.solve(read), fresh.solve(read))
    _close(extended.solve(read, known=narrow.solve(read)), fresh.solve(read))


def test_influences_are_what_leaving_a_fold_out_changes(dense: np.ndarray, x: np.ndarray) -> None:
    regression, read = Regression(code_of(dense), ROWS, FOLDS), held(x, [5, 7])
    solution = regression.solve(read)
    rows, folds = ROWS.numpy(), FOLDS.numpy()
    for g, errors in enumerate(regression.influences(read, solution)):
        left = rows[folds != g]
        refitted = solution.decoder.numpy() - _ridge(dense[left], x[left], 1e-4)[0]
        estimate = errors.double().numpy()
        assert np.corrcoef(estimate.ravel(), refitted.ravel())[0, 1] > 0.99
        # First order in 1/10 of the data: sizes agree to some hundredths.
        assert np.linalg.norm(estimate) == pytest.approx(np.linalg.norm(refitted), rel=0.05)


def test_a_rotation_of_the_activations_rotates_the_decoder(dense: np.ndarray, x: np.ndarray) -> None:
    turn = rotation(D, 3)
    regression = Regression(code_of(dense), ROWS, FOLDS)
    plain, turned = regression.solve(held(x)), regression.solve(held(x @ turn))
    np.testing.assert_allclose(plain.decoder.double().numpy() @ turn, turned.decoder, atol=5e-5)


def test_folds_keep_documents_whole_and_come_out_alike() -> None:
    document = torch.tensor([5, 5, 9, 2, 2, 2, 9, 11, 40, 40, 7, 1])
    folds = assign_folds(document, 3)
    assert torch.equal(folds, assign_folds(document, 3))
    assert set(folds.tolist()) == {0, 1, 2}
    for one in document.unique():
        assert len(folds[document == one].unique()) == 1
    # 7 documents on 3 folds: 3, 2 and 2.
    assert sorted(len(document[folds == g].unique()) for g in range(3)) == [2, 2, 3]
    assert sorted(assign_folds(torch.arange(4), 20).tolist()) == [0, 1, 2, 3]


def test_folds_are_a_shuffle_not_the_order_of_documents() -> None:
    """Neighbouring documents come from one place (a file, a topic): they must not share a fold, nor alternate."""
    folds = assign_folds(documents(40_000, 100), 20)[::100]
    assert folds.bincount().tolist() == [20] * 20
    assert 0.02 < float((folds[1:] == folds[:-1]).float().mean()) < 0.09  # by chance 0.05 +- 0.011
    assert float((folds[20:] == folds[:-20]).float().mean()) < 0.1


def test_latents_that_are_one_another_s_sum_do_not_take_over_what_no_latent_holds() -> None:
    """A concept, the half of it that is a concept of its own, and the other half: together they are one too many. At
    one firing in five the checkpoint also writes something that the code knows only as a twentieth more activation of
    the first. Without a ridge to speak of, that is what the three rows are made of, ten times over."""
    n, rng = 12_000, np.random.default_rng(0)
    code, rows = dense_code(n, 40, 0.03, seed=0), directions(41, 48, seed=1)
    on = code[:, 0] > 0
    code[on, 0] = 1.0
    code[:, 1] = on & (rng.random(n) < 0.5)
    code[:, 2] = on & (code[:, 1] == 0)
    unseen = on & (rng.random(n) < 0.2)
    x = code @ rows[:40] + np.outer(unseen, rows[40]) + 0.05 * rng.standard_normal((n, 48))
    code[:, 0] += 0.05 * unseen
    regression = Regression(code_of(code), torch.arange(n), assign_folds(documents(n, 60), 20))
    assert float(regression.solve(held(x)).decoder.norm(dim=1).max()) < 3.0
