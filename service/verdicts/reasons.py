"""Why a feature could not be judged, from the figures stored with its verdict.

In the rule of `service.verdicts.judge`, a feature is `indeterminate` if no other status applies. This finds the
condition that failed. Pure numpy, like the rule.
"""

from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from featurewatch.service.verdicts.policy import Policy

Floats = NDArray[np.floating]


class Reason(StrEnum):
    FEW_FIRINGS = "few_firings"
    """active on fewer positions than `min_firings`"""
    FEW_DOCUMENTS = "few_documents"
    """active in fewer documents than `min_documents`, too few for an interval"""
    NO_BASELINE = "no_baseline"
    """strength at the baseline is within the noise, so there is no ratio"""
    WIDE_INTERVAL = "wide_interval"
    """the interval of the projection ratio crosses a threshold"""
    NOT_SIGNIFICANT = "not_significant"
    """the interval is outside the band, but not significant after correcting for the number of features"""
    UNREADABLE = "unreadable"
    """written, but not readable by the checkpoint's own encoder"""


class Figures(NamedTuple):
    """Stored figures of m `indeterminate` features, [m] each; NaN if undefined."""

    firings: NDArray[np.int64]
    documents: Floats
    ratio_lo: Floats
    """of the projection ratio; NaN: there is no ratio"""
    ratio_hi: Floats


def reasons(figures: Figures, policy: Policy) -> list[Reason]:
    """Why each feature is `indeterminate`: the first condition of the rule that it fails."""
    low, high = figures.ratio_lo, figures.ratio_hi
    crosses = ((low < policy.suppressed_below) & (high >= policy.suppressed_below)) | (
        (low <= policy.amplified_above) & (high > policy.amplified_above)
    )
    outside = (high < policy.suppressed_below) | (low > policy.amplified_above)
    # Features with a ratio had enough firings. The first condition that holds is the reason.
    conditions: list[tuple[Reason, NDArray[np.bool_]]] = [
        (Reason.FEW_FIRINGS, np.isnan(low) & (figures.firings < policy.min_firings)),
        (Reason.FEW_DOCUMENTS, np.isnan(low) & (figures.documents < policy.min_documents)),
        (Reason.NO_BASELINE, np.isnan(low)),
        (Reason.WIDE_INTERVAL, crosses),
        (Reason.NOT_SIGNIFICANT, outside),
    ]
    chosen = np.select([mask for _, mask in conditions], list(range(len(conditions))), default=len(conditions))
    order = [reason for reason, _ in conditions] + [Reason.UNREADABLE]
    return [order[index] for index in chosen.tolist()]
