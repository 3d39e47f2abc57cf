"""Balanced accuracy and its interval."""

import numpy as np
import pytest
from scipy.stats import binomtest

from featurewatch.workers.labels.score import balanced_accuracy, wilson


@pytest.mark.parametrize(("right", "of"), [(0, 5), (3, 7), (10, 10), (50, 100)])
def test_wilson_is_scipys(right: int, of: int) -> None:
    expected = binomtest(right, of).proportion_ci(0.95, method="wilson")
    assert wilson(right, of) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_too_few() -> None:
    assert balanced_accuracy([True, True, False], [True, True, False]) is None
    assert balanced_accuracy([], []) is None


def test_kinds_weigh_the_same() -> None:
    found = balanced_accuracy([True] * 10 + [False] * 2, [True] * 10 + [True, False])
    assert found is not None
    assert found.value == 0.75
    assert (found.low, found.high) == pytest.approx((0.504, 0.953), abs=1e-3)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    random, held = np.random.default_rng(0), 0
    fires = [True] * 10 + [False] * 10
    for _ in range(2000):
        said = [bool(random.random() < 0.8) if one else bool(random.random() < 0.3) for one in fires]
        found = balanced_accuracy(fires, said)
        assert found is not None
        held += found.low <= 0.75 <= found.high
    assert held / 2000 > 0.94
