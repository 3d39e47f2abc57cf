"""Two halves of the documents: the products are unbiased, and their intervals cover what they should."""

import numpy as np
import torch
from scipy import sparse
from scipy.special import stdtrit

from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.regress import Regression, assign_folds
from featurewatch.workers.verdicts.halves import Half, products_of_halves
from featurewatch.workers.verdicts.measure import Products, Side, ratios

N, M, D, DOCUMENTS = 8000, 60, 32, 400
NOISE = 0.5


def halves(seed: int, level: float = 1.0, gone: int | None = None) -> Products:
    """One code, and activations of it with noise; in the first half at `level` times the strength."""
    rng = np.random.default_rng(seed)
    fired = rng.random((N, M)) < 0.02
    matrix = np.where(fired, rng.lognormal(0, 0.5, (N, M)), 0).astype(np.float32)
    code = Code.from_scipy(sparse.csr_matrix(matrix))
    rows = np.linalg.norm(directions := rng.standard_normal((M, D)), axis=1, keepdims=True)
    directions = (directions / rows).astype(np.float32)
    document = torch.from_numpy(np.sort(rng.integers(0, DOCUMENTS, N)))
    first = torch.from_numpy(rng.permutation(DOCUMENTS) < DOCUMENTS // 2)[document]
    scale = np.where(first.numpy(), level, 1.0)[:, None].astype(np.float32)
    x = torch.from_numpy(scale * (matrix @ directions) + NOISE * rng.standard_normal((N, D), dtype=np.float32))
    made = []
    for chosen in (first, ~first):
        positions = chosen.nonzero().squeeze(1)
        regression = Regression(code, positions, assign_folds(document[positions], 20))
        made.append(Half(regression, Side(lambda r: x[r], regression.solve(lambda r: x[r]))))
    if gone is None:
        return products_of_halves(made[0], made[1], [D])
    fixed = torch.arange(M) == gone
    return products_of_halves(made[0], made[1], [D], fixed, torch.from_numpy(2 * directions))


def intervals(products: Products) -> tuple[np.ndarray, np.ndarray]:
    """Projection ratios and the half-widths of their 95% intervals."""
    projection = ratios(products.now.sum(1), products.before.sum(1), products.both.sum(1)).projection.numpy()
    k = len(projection) - 1
    left_out = projection[1:]
    error = np.sqrt((k - 1) / k * ((left_out - left_out.mean(0)) ** 2).sum(0))
    return projection[0], stdtrit(k - 1, 0.975) * error


def test_strengths_are_unbiased() -> None:
    """The squared norm of a solved row is too large by its noise; these products are not."""
    got = [halves(seed) for seed in range(6)]
    for name in ("now", "before", "both"):
        mean = np.mean([getattr(one, name)[0, 0].numpy() for one in got])
        assert abs(mean - 1) < 0.02, name
    assert all(one.now.shape == (41, 1, M) for one in got)


def test_intervals_hold_one_as_often_as_they_say() -> None:
    held = []
    for seed in range(10, 22):
        ratio, reach = intervals(halves(seed))
        held += (np.abs(ratio - 1) <= reach).tolist()
    assert 0.92 <= np.mean(held) <= 0.98


def test_a_change_between_the_halves_is_seen() -> None:
    ratio, reach = intervals(halves(3, level=0.4))
    assert abs(ratio.mean() - 0.4) < 0.02
    assert (ratio + reach < 1).all()


def test_a_feature_that_is_gone_is_held_against_where_it_was() -> None:
    got = halves(4, gone=7)
    assert abs(float(got.before[0, 0, 7]) - 4) < 1e-4  # the reference is twice as long, and has no error
    assert float((got.before[:, 0, 7] - got.before[0, 0, 7]).abs().max()) < 1e-4
    assert abs(float(got.both[0, 0, 7]) - 2) < 0.3
