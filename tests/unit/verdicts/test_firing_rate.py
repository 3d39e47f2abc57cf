"""How often a feature is active, by own codes."""

import numpy as np
import pytest
import scipy.sparse

from featurewatch.service.verdicts.activity import OwnCode, compare_activity
from featurewatch.service.verdicts.places import place
from featurewatch.service.verdicts.policy import Policy

N, DOCUMENTS = 2000, 100


def own_code(active: np.ndarray, valid: np.ndarray) -> OwnCode:
    """The code of one feature that is active at some positions."""
    matrix = scipy.sparse.csr_matrix(np.where(active & valid, 2.0, 0.0)[:, None].astype(np.float32))
    document = np.repeat(np.arange(DOCUMENTS), N // DOCUMENTS)
    return OwnCode(matrix, valid, document, document % 20, 0.5, np.arange(1))


def test_rates_are_shares_of_the_positions_that_are_valid_in_both() -> None:
    position = np.arange(N)
    before = own_code(position % 10 == 0, valid=position >= 200)
    now = own_code(position % 5 == 0, valid=position < 1800)
    placement = place(compare_activity(before, now), Policy(), level=0.05)
    assert placement.firing_rate_before[0] == pytest.approx(0.1)
    assert placement.firing_rate_before[0] * placement.firing_rate_ratio[0] == pytest.approx(0.2)


def test_a_feature_that_is_hardly_active_has_no_rate() -> None:
    rare = own_code(np.arange(N) < 3, valid=np.ones(N, dtype=bool))
    assert np.isnan(place(compare_activity(rare, rare), Policy(), level=0.05).firing_rate_before[0])
