"""Who fires in the place of a weakened feature, against loops over a dense code."""

import numpy as np
import pytest
import scipy.sparse

from featurewatch.workers.verdicts.succession import shares
from tests.unit.crosscoder.planted import dense_code

N, M = 4000, 8
NORM_BEFORE = np.linspace(0.5, 2.0, M).astype(np.float32)
NORM_NOW = np.linspace(2.0, 0.5, M).astype(np.float32)


@pytest.fixture
def dense() -> np.ndarray:
    """Weakened: 0, 1. Candidate 4 fires where 0 does, 5 at half of them, 6 everywhere, 7 by itself."""
    code = dense_code(N, M, 0.02, seed=0)
    where = np.flatnonzero(code[:, 0])
    code[:, 4] = 0.0
    code[where, 4] = 2.0
    code[:, 5] = 0.0
    code[where[::2], 5] = 1.0
    code[:, 6] = 1.0
    return code


def test_shares_equal_the_sums(dense: np.ndarray) -> None:
    weakened, candidates = np.array([0, 1]), np.array([4, 5, 6, 7])
    got = shares(scipy.sparse.csr_matrix(dense), weakened, candidates, NORM_BEFORE, NORM_NOW)
    assert set(got) == {0}
    assert set(got[0]) == {4, 5}  # not the one that fires everywhere, not the one that fires by chance
    for j in (4, 5):
        both = (dense[:, 0] > 0) & (dense[:, j] > 0)
        assert got[0][j].cofiring == pytest.approx(dense[both, 0].sum() / dense[:, 0].sum(), rel=1e-5)
        written = (dense[both, j] ** 2).sum() * NORM_NOW[j] ** 2
        wrote = (dense[:, 0] ** 2).sum() * NORM_BEFORE[0] ** 2
        assert got[0][j].strength == pytest.approx((written / wrote) ** 0.5, rel=1e-5)
    assert got[0][4].cofiring == pytest.approx(1.0)


def test_two_weakened_features_with_one_successor(dense: np.ndarray) -> None:
    dense[dense[:, 1] > 0, 4] = 1.0
    got = shares(scipy.sparse.csr_matrix(dense), np.array([0, 1]), np.array([4]), NORM_BEFORE, NORM_NOW)
    assert {column: list(named) for column, named in got.items()} == {0: [4], 1: [4]}


@pytest.mark.parametrize(("weakened", "candidates"), [([], [4]), ([0], [])])
def test_nothing_to_compare(dense: np.ndarray, weakened: list[int], candidates: list[int]) -> None:
    pair = (np.array(weakened, dtype=np.int64), np.array(candidates, dtype=np.int64))
    assert shares(scipy.sparse.csr_matrix(dense), *pair, NORM_BEFORE, NORM_NOW) == {}


def test_a_weakened_feature_that_never_fires_has_no_successor(dense: np.ndarray) -> None:
    dense[:, 0] = 0.0
    got = shares(scipy.sparse.csr_matrix(dense), np.array([0]), np.array([4, 6]), NORM_BEFORE, NORM_NOW)
    assert got == {}
