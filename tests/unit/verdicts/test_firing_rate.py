"""How often a feature is active, by own codes."""

import numpy as np
import pytest

from featurewatch.service.verdicts.activity import compare_activity
from featurewatch.service.verdicts.places import place
from featurewatch.service.verdicts.policy import Policy
from tests.unit.verdicts.codes import own_code

POSITION = np.arange(2000)[:, None]


def test_rates_are_shares_of_the_positions_that_are_valid_in_both() -> None:
    before = own_code(2.0 * (POSITION % 10 == 0), valid=POSITION[:, 0] >= 200)
    now = own_code(2.0 * (POSITION % 5 == 0), valid=POSITION[:, 0] < 1800)
    placement = place(compare_activity(before, now), Policy(), level=0.05)
    assert placement.firing_rate_before[0] == pytest.approx(0.1)
    assert placement.firing_rate_before[0] * placement.firing_rate_ratio[0] == pytest.approx(0.2)


def test_a_feature_that_is_hardly_active_has_no_rate() -> None:
    rare = own_code(2.0 * (POSITION < 3))
    assert np.isnan(place(compare_activity(rare, rare), Policy(), level=0.05).firing_rate_before[0])
