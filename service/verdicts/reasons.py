"""Why a feature could not be judged, from the figures that are stored with its verdict.

The counterpart of the last line of the rule in `service.verdicts.judge`: a feature is `indeterminate` where nothing
else holds, and this says what stood in the way. Pure numpy, like the rule.
"""

from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from featurewatch.service.verdicts.policy import Policy

Floats = NDArray[np.floating]


class Reason(StrEnum):
    FEW_FIRINGS = "few_firings"
    """fires on fewer positions than `min_firings`"""
    FEW_DOCUMENTS = "few_documents"
    """in fewer documents than `min_documents`: no interval can be trusted"""
    NO_BASELINE = "no_baseline"
    """its strength at the baseline is not over its noise: there is nothing to take a ratio against"""
    WIDE_INTERVAL = "wide_interval"
    """the interval of the projection ratio crosses a threshold"""
    NOT_SIGNIFICANT = "not_significant"
    """the interval lies outside the band, but so would that of some unchanged feature among so many"""
    UNREADABLE = "unreadable"
    """its direction is written, but the checkpoint's own encoder does not find it: readability"""


class Figures(NamedTuple):
    """What is stored of m features that are `indeterminate`, [m] each; NaN where there is none."""

    firings: NDArray[np.int64]
    documents: Floats
    ratio_lo: Floats
    """of the projection ratio; NaN: none could be taken"""
    ratio_hi: Floats


def reasons(figures: Figures, policy: Policy) -> list[Reason]:
    """Why each feature is `indeterminate`: the first of the conditions of the rule that it fails."""
    low, high = figures.ratio_lo, figures.ratio_hi
    crosses = ((low < policy.suppressed_below) & (high >= policy.suppressed_below)) | (
        (low <= policy.amplified_above) & (high > policy.amplified_above)
    )
    outside = (high < policy.suppressed_below) | (low > policy.amplified_above)
    # Of those that have a ratio the firings sufficed; the first condition that holds is the answer.
    conditions: list[tuple[Reason, NDArray[np.bool_]]] = [
        (Reason.FEW_FIRINGS, np.isnan(low) & (figures.firings < policy.min_firings)),
        (Reason.FEW_DOCUMENTS, np.isnan(low) & (figures.documents < policy.min_documents)),
        (Reason.NO_BASELINE, np.isnan(low)),
        (Reason.WIDE_INTERVAL, crosses),
        (Reason.NOT_SIGNIFICANT, outside),
    ]
    chosen = np.select([held for _, held in conditions], list(range(len(conditions))), default=len(conditions))
    order = [reason for reason, _ in conditions] + [Reason.UNREADABLE]
    return [order[place] for place in chosen.tolist()]
