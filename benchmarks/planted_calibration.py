"""Calibration of the figures behind the verdicts: intervals and q-values against the planted truth.

The true ratio of a planted feature is `Lineage.ratios` against the parent, divided by its median over the features that
are present, because the service removes global changes by the median too.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks.planted_data import Lineage
from benchmarks.planted_score import Matching
from benchmarks.planted_shape import AMPLIFIED_ABOVE, PRESENT, SUPPRESSED_BELOW

Rows = Mapping[int, Mapping[int, Mapping[str, Any]]]
"""Checkpoint (from 2) -> number of the feature -> its row: `projection_ratio`, `projection_ratio_ci`, `q_value`."""
Case = tuple[int, int, str, float, Mapping[str, Any]]
"""Checkpoint, planted feature, true status, true ratio, row"""


def cases(lineage: Lineage, rows: Rows, matching: Matching) -> Iterator[Case]:
    """Every matched feature at every checkpoint whose parent writes it."""
    for checkpoint, found in sorted(rows.items()):
        statuses = lineage.truth(checkpoint).against_parent
        ratios = lineage.ratios(checkpoint, checkpoint - 1)
        ratios /= np.median(ratios[np.array(statuses) == PRESENT])
        for feature, latent in enumerate(matching.latent.tolist()):
            if latent in found and np.isfinite(ratios[feature]):
                yield checkpoint, feature, statuses[feature], float(ratios[feature]), found[latent]


def coverage(lineage: Lineage, rows: Rows, matching: Matching) -> dict[str, Any]:
    """Coverage of the projection ratio's intervals, over all cases and by true status.

    For each: `n` cases that have an interval, `covered`, `bias` (mean of ratio less truth), `rmse`, and `half_width`,
    the median of half the interval. `without` is the share of cases that have none: too little to judge.
    """
    kinds: dict[str, list[tuple[float, float, float, float]]] = {"all": []}
    without = total = 0
    for _, _, status, truth, row in cases(lineage, rows, matching):
        total += 1
        ratio, interval = row["projection_ratio"], row["projection_ratio_ci"]
        if ratio is None or interval is None or None in interval:
            without += 1
            continue
        for kind in ("all", status):
            kinds.setdefault(kind, []).append((truth, ratio, *interval))
    return {kind: _coverage(np.array(part)) for kind, part in kinds.items() if part} | {
        "without": without / max(total, 1)
    }


def _coverage(part: np.ndarray) -> dict[str, float]:
    truth, ratio, low, high = part.T
    error = ratio - truth
    return {
        "n": len(part),
        "covered": float(((low <= truth) & (truth <= high)).mean()),
        "bias": float(error.mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "half_width": float(np.median((high - low) / 2)),
    }


def q_values(lineage: Lineage, rows: Rows, matching: Matching, fdr: float) -> dict[str, Any]:
    """Whether the share of false discoveries matches the q-values.

    What is tested is that a ratio lies in the band from 0.5 to 2. `false_share`: of the matched features with
    q <= fdr (`significant`), those whose true ratio is in the band; at most `fdr` is right. `unchanged_share`: of
    the features that are truly present (`unchanged`), those with q <= fdr. `unmatched`: significant latents that are
    no planted feature, which neither counts.
    """
    significant = false = unchanged = unchanged_significant = 0
    for _, _, status, truth, row in cases(lineage, rows, matching):
        found = row["q_value"] is not None and row["q_value"] <= fdr
        significant += found
        false += found and SUPPRESSED_BELOW <= truth <= AMPLIFIED_ABOVE
        unchanged += status == PRESENT
        unchanged_significant += found and status == PRESENT
    others = [row for part in rows.values() for n, row in part.items() if n not in matching.numbers]
    return {
        "significant": significant,
        "false_share": false / max(significant, 1),
        "unchanged": unchanged,
        "unchanged_share": unchanged_significant / max(unchanged, 1),
        "unmatched": sum(row["q_value"] is not None and row["q_value"] <= fdr for row in others),
    }
