"""Whether a feature that is new in the dictionary was already in the baseline. If so, it did not emerge.

The counterpart of the rule in `service.verdicts.judge` for first appearances. Pure numpy as well.
"""

from typing import NamedTuple

import numpy as np

from featurewatch.service.verdicts.judge import BASELINE_Z, Bools, Floats, standard_error
from featurewatch.service.verdicts.policy import Policy

ELSEWHERE = 0.25
"""Share of a feature's strength that the baseline must write, along any direction, to possibly have the feature. Not
one half, as in `suppressed_below`: other latents take up to half of a feature that the dictionary missed."""
READ = 0.8
"""Share of the checkpoint's correlation that the baseline's own read-out must reach to have the feature. A predecessor
that fires at the very same positions with independent sizes (log-normal, sigma 0.5) reaches 0.78, at two thirds of the
positions 0.6; a relocated feature reaches 1."""


class Appearance(NamedTuple):
    """What a baseline writes where m features fire, relative to the checkpoint."""

    along: Floats
    """[m] <D_b, D_c> / <D_c, D_c>, along the feature's own direction; and its standard error"""
    along_se: Floats
    strength: Floats
    """[K + 1, m] ||D_b|| / ||D_c|| along any direction, with replicates; NaN if either is within the noise"""
    baseline_z: Floats
    """[m] ||D_b||^2 over its standard error"""


def elsewhere(appearance: Appearance) -> Bools:
    """[m] features that the baseline clearly writes in some direction. Readability matters only for these."""
    with np.errstate(invalid="ignore"):
        low = appearance.strength[0] - 2 * standard_error(appearance.strength)
    return np.nan_to_num(low, nan=0.0) >= ELSEWHERE


def held(appearance: Appearance, readability: Floats, readability_before: Floats, policy: Policy) -> Bools:
    """[m] features that the baseline has, or may have.

    Along its own direction the baseline has a feature if it writes more than what would make it `absent`, over the
    noise, or cannot be shown to write less than half. Along other directions it has the feature if it clearly writes it
    and is as readable: a relocation, seen backwards. readability: [m] here and at the baseline, NaN where not measured.
    """
    most = np.nan_to_num(appearance.along) + 2 * np.nan_to_num(appearance.along_se)
    own = (most >= policy.absent_below) & (appearance.baseline_z >= BASELINE_Z)
    with np.errstate(invalid="ignore"):
        read = readability_before >= READ * readability
    return own | (most >= policy.suppressed_below) | (elsewhere(appearance) & read)
