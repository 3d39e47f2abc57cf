"""Whether the baseline holds a feature that is new in the dictionary: then it was there before, and did not emerge.

The counterpart, for a first appearance, of the rule in `service.verdicts.judge`; pure numpy like that.
"""

from typing import NamedTuple

import numpy as np

from featurewatch.service.verdicts.judge import BASELINE_Z, Bools, Floats, standard_error
from featurewatch.service.verdicts.policy import Policy

ELSEWHERE = 0.25
"""Where the baseline surely writes so much of a feature's strength, along any direction, it may hold the feature. Half
of it would do, as in `suppressed_below`; of what a dictionary missed, its other latents take up to half."""
READ = 0.8
"""It does hold it where its own read-out finds the code nearly as well as the checkpoint's: at so large a share of the
correlation. A predecessor that fires at the very same positions, but in sizes of its own (log-normal, sigma 0.5), leads
to 0.78, at two thirds of the positions to 0.6; a relocated feature to 1."""


class Appearance(NamedTuple):
    """What a baseline writes where m features fire, against what the checkpoint writes there."""

    along: Floats
    """[m] <D_b, D_c> / <D_c, D_c>, along the feature's own direction; and its standard error"""
    along_se: Floats
    strength: Floats
    """[K + 1, m] ||D_b|| / ||D_c||, along any direction, with replicates; NaN where one of the two is not over noise"""
    baseline_z: Floats
    """[m] ||D_b||^2 over its standard error"""


def elsewhere(found: Appearance) -> Bools:
    """[m] features of which the baseline writes a good deal in any direction: only of those does `readable` matter."""
    with np.errstate(invalid="ignore"):
        low = found.strength[0] - 2 * standard_error(found.strength)
    return np.nan_to_num(low, nan=0.0) >= ELSEWHERE


def held(found: Appearance, readability: Floats, readability_before: Floats, policy: Policy) -> Bools:
    """[m] features that the baseline holds as well, or may hold.

    Along its own direction a feature is not held where the baseline writes as little of it as makes one `absent`, or
    nothing that is over noise; and less than half of it in any case. Along other directions it is held where the
    baseline writes a good deal of it and can be read as well: that is a relocation read backwards. Readability: [m]
    here and at the baseline, NaN where not measured.
    """
    most = np.nan_to_num(found.along) + 2 * np.nan_to_num(found.along_se)
    own = (most >= policy.absent_below) & (found.baseline_z >= BASELINE_Z)
    with np.errstate(invalid="ignore"):
        read = readability_before >= READ * readability
    return own | (most >= policy.suppressed_below) | (elsewhere(found) & read)
