"""A few rows of a decoder: the same errors and products as where all are measured."""

import numpy as np
import pytest
import torch

from featurewatch.workers.crosscoder.regress import Regression, assign_folds
from featurewatch.workers.verdicts.measure import Side, products
from featurewatch.workers.verdicts.selected_rows import room, row_products, rows_of, weights
from tests.unit.crosscoder.planted import Held, code_of, dense_code, directions, documents, held, rotation

N, M, D = 6000, 30, 16
CHOSEN = torch.tensor([3, 17, 29])
CODE = dense_code(N, M, 0.05, seed=0)


def activations(seed: int, turned: np.ndarray) -> Held:
    rng = np.random.default_rng(seed)
    levels = rng.uniform(0.2, 1.5, (M, 1))
    return held((CODE @ (levels * directions(M, D, seed=1)) + 0.2 * rng.standard_normal((N, D))) @ turned, [6, 10])


@pytest.mark.parametrize("dense_up_to", [M, 0])
def test_they_are_those_of_a_measurement_of_all(dense_up_to: int) -> None:
    folds = assign_folds(documents(N, 60), 20)
    regression = Regression(code_of(CODE), torch.arange(N), folds, dense_up_to=dense_up_to)
    turn = rotation(D, seed=2)
    maps = [torch.from_numpy(rotation(d, seed=d)).float() for d in (6, 10)]
    sides = [Side(read, regression.solve(read)) for read in (activations(1, np.eye(D)), activations(2, turn))]
    want = products(regression, sides[0], sides[1], [(6, 6), (10, 10)], list(maps))
    weight, share = weights(regression, CHOSEN), room(regression, CHOSEN)
    assert weight.shape == (M + 1, len(CHOSEN))
    now, before = (rows_of(regression, weight, CHOSEN, side.read, side.solution) for side in sides)
    before = before.mapped([6, 10], list(maps))
    pairs = {"now": (now, now), "before": (before, before), "both": (now, before)}
    for name, (x, y) in pairs.items():
        got = row_products(x, y, [6, 10], share)
        assert got.shape == (21, 2, len(CHOSEN))
        torch.testing.assert_close(got, getattr(want, name)[..., CHOSEN], rtol=2e-3, atol=2e-4)
