"""Calibration of the figures behind the verdicts: intervals and q-values against the planted truth.

The true ratio of a planted feature is `Lineage.ratios` against the parent, divided by its median over the features that
are present, because the service removes global changes by the median too.

The true shares and rates of where a feature is active are `Lineage.figures`. Their intervals allow for the choice of
documents. So the truth is what the event gives on average over draws (`expected`), and not what it gave in this corpus.
The two are the same for a feature without an event. All draws share the documents and the old positions. A jackknife
over documents of the planted magnitudes themselves therefore covers 92 to 97% for narrowed features, which lose
documents or positions independently, and 100% for broadened and displaced ones.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks.planted_data import Lineage
from benchmarks.planted_places import FIGURES
from benchmarks.planted_score import Matching
from benchmarks.planted_shape import AMPLIFIED_ABOVE, LEAVING, PRESENT, SUPPRESSED_BELOW

Rows = Mapping[int, Mapping[int, Mapping[str, Any]]]
"""Checkpoint (from 2) -> number of the feature -> its row: `projection_ratio`, `projection_ratio_ci`, `q_value`
and, where the service measures places, `FIGURES` with `_ci`."""
Case = tuple[int, int, str, float, Mapping[str, Any]]
"""Checkpoint, planted feature, true status, true ratio, row"""


def cases(lineage: Lineage, rows: Rows, matching: Matching) -> Iterator[Case]:
    """Every matched feature at every checkpoint whose parent writes it.

    A narrowed or displaced feature is left out from its onset on: a ratio that is taken at its old positions mixes
    those where it is written with those where it no longer is.
    """
    onsets = {e.feature: e.checkpoint for e in lineage.events if e.kind in LEAVING}
    for checkpoint, found in sorted(rows.items()):
        statuses = lineage.truth(checkpoint).against_parent
        ratios = lineage.ratios(checkpoint, checkpoint - 1)
        ratios /= np.median(ratios[np.array(statuses) == PRESENT])
        for feature, latent in enumerate(matching.latent.tolist()):
            left = checkpoint >= onsets.get(feature, np.inf)
            if latent in found and np.isfinite(ratios[feature]) and not left:
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


def place_coverage(lineage: Lineage, rows: Rows, matching: Matching) -> dict[str, Any] | None:
    """Coverage of the intervals of each of `FIGURES`, over all features that have places to compare and by true places.

    For each figure the same measures as of `coverage`, and `covered_planted`: the share of intervals that contain the
    figure of the planted magnitudes in this corpus. None where no row has such an interval.
    """
    intervals: dict[str, dict[str, list[tuple[float, ...]]]] = {figure: {"all": []} for figure in FIGURES}
    total, without = 0, Counter[str]()
    for checkpoint, found in sorted(rows.items()):
        places = lineage.truth(checkpoint).places_against_parent
        expected = lineage.figures(checkpoint, checkpoint - 1, expected=True)
        planted = lineage.figures(checkpoint, checkpoint - 1)
        for feature, latent in enumerate(matching.latent.tolist()):
            place, row = places[feature], found.get(latent)
            if place is None or row is None:
                continue
            total += 1
            for figure, part in intervals.items():
                value, interval = row.get(figure), row.get(f"{figure}_ci")
                if value is None or interval is None or None in interval:
                    without[figure] += 1
                    continue
                case = (expected[figure][feature], value, *interval, planted[figure][feature])
                for kind in ("all", place):
                    part.setdefault(kind, []).append(case)
    if not any(part["all"] for part in intervals.values()):
        return None
    return {
        figure: {kind: _place_coverage(np.array(cases)) for kind, cases in part.items() if cases}
        | {"without": without[figure] / total}
        for figure, part in intervals.items()
    }


def _place_coverage(part: np.ndarray) -> dict[str, float]:
    _, _, low, high, planted = part.T
    return _coverage(part[:, :4]) | {"covered_planted": float(((low <= planted) & (planted <= high)).mean())}


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
