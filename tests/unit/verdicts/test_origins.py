"""Whether the baseline holds a new feature: along its own direction, along another one, or not."""

import numpy as np
import pytest

from featurewatch.service.verdicts.origins import Appearance, elsewhere, held
from featurewatch.service.verdicts.policy import Policy

FOLDS = 20


def appearance(along: float, along_se: float, strength: float, strength_se: float, z: float) -> Appearance:
    """Of one feature, with replicates whose jackknife error is `strength_se`."""
    around = strength_se / (FOLDS - 1) ** 0.5 * np.where(np.arange(FOLDS) % 2, 1.0, -1.0)
    replicates = np.concatenate([[strength], strength + around]).astype(np.float32)
    return Appearance(
        *(np.array([value], np.float32) for value in (along, along_se)), replicates[:, None], np.array([z])
    )


@pytest.mark.parametrize(
    ("along", "along_se", "strength", "strength_se", "z", "read", "expected"),
    [
        (0.0, 0.01, np.nan, 0.0, -0.5, np.nan, False),  # born: nothing is there
        (0.02, 0.06, 0.1, 0.05, 1.4, np.nan, False),  # born, and the parent is not over its noise
        (0.0, 0.01, 0.14, 0.01, 5.4, 0.5, False),  # a successor of a known feature: a little is left of that one
        (-0.05, 0.01, 0.6, 0.03, 10.0, 0.65, False),  # of one that was missed: another code, at the same positions
        (0.95, 0.01, 0.96, 0.01, 10.0, 0.9, True),  # there, and missed so far
        (0.25, 0.0, 0.25, 0.0, 22.0, 0.7, True),  # there, and four times as strong here
        (-0.13, 0.01, 0.76, 0.02, 17.0, 0.9, True),  # there, written along another direction
        (-0.1, 0.02, 0.41, 0.03, 8.0, 0.8, True),  # the same, and half of it was taken by other latents
        (0.3, 0.15, 0.5, 0.2, 1.5, np.nan, True),  # nothing is certain, so it did not emerge
    ],
)
def test_what_the_baseline_holds(
    along: float, along_se: float, strength: float, strength_se: float, z: float, read: float, expected: bool
) -> None:
    found = appearance(along, along_se, strength, strength_se, z)
    readability, before = np.array([0.9], np.float32), np.array([read], np.float32)
    assert held(found, readability, before, Policy()).tolist() == [expected]


def test_only_what_is_surely_written_is_read_at_the_baseline() -> None:
    assert elsewhere(appearance(0, 0, 0.4, 0.05, 9)).tolist() == [True]
    assert elsewhere(appearance(0, 0, 0.4, 0.1, 9)).tolist() == [False]
    assert elsewhere(appearance(0, 0, np.nan, 0, 0)).tolist() == [False]
