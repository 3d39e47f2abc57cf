"""False alarms in the comparisons of nulls: nothing changed, so every verdict that says so is one."""

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from featurewatch.service.alerts import evaluation as alerts
from featurewatch.service.calibrations.schemas import (
    GridRow,
    NullResult,
    Thresholds,
    Unavailable,
    WouldAlert,
    rate,
    total,
)
from featurewatch.service.families.calibration import NullName, Rate
from featurewatch.service.verdicts.judge import Bools, Evidence, Judgement, judge
from featurewatch.service.verdicts.policy import Policy
from featurewatch.service.verdicts.statuses import PLACES_CHANGED, Places, Status
from featurewatch.workers.pipelines.stages.judge import ParentComparison

BANDS = (0.5, 0.7, 0.8, 0.9, 0.95)
"""`suppressed_below` of the grid; `amplified_above` is its inverse."""
RATES = (0.01, 0.05, 0.1)
"""`fdr` of the grid."""
PERCENT = (0.1, 1, 5, 50, 95, 99, 99.9)
SLACK = 1e-4
"""An interval that misses 1 by less still contains it: equal numbers differ by their rounding."""


def false_alarms(evidence: Evidence, judgement: Judgement) -> Bools:
    """bool [m] features with a verdict of change: not present, not indeterminate, and not absent as before."""
    quiet = np.isin(judgement.status, [Status.PRESENT, Status.INDETERMINATE])
    still_gone = ~evidence.there_before & np.isin(judgement.status, [Status.ABSENT])
    return ~(quiet | still_gone)


def judged_features(comparison: ParentComparison, alarms: Bools) -> int:
    """How many features the comparison could judge."""
    return int((np.isfinite(comparison.judgement.projection_ratio) | alarms).sum())


def unavailable(null: NullName, code: str, detail: str) -> NullResult:
    reason = Unavailable(code=code, detail=detail)
    return NullResult(null=null, unavailable=reason, checkpoints=rate(0, 0), features=rate(0, 0))


def summarize(
    null: NullName,
    comparisons: Sequence[ParentComparison],
    policy: Policy,
    settings: dict[str, Any],
    would_alert: list[WouldAlert],
) -> NullResult:
    """Summary of a null over all its comparisons."""
    alarms = [false_alarms(comparison.evidence, comparison.judgement) for comparison in comparisons]
    known = [_known(comparison) for comparison in comparisons]
    ratios = np.concatenate(
        [comparison.judgement.projection_ratio[k] for comparison, k in zip(comparisons, known, strict=True)]
    )
    covered = np.concatenate(
        [_contains_one(comparison.judgement)[k] for comparison, k in zip(comparisons, known, strict=True)]
    )
    statuses = Counter(str(status) for comparison in comparisons for status in comparison.judgement.status)
    return NullResult(
        null=null,
        settings=settings,
        checkpoints=rate(sum(bool(part.any()) for part in alarms), len(comparisons)),
        features=rate(
            sum(int(part.sum()) for part in alarms),
            sum(judged_features(comparison, part) for comparison, part in zip(comparisons, alarms, strict=True)),
        ),
        places=_places(comparisons),
        significant=sum(_significant(comparison, policy) for comparison in comparisons),
        emerged=sum(int((comparison.new & comparison.evidence.born_here).sum()) for comparison in comparisons),
        discovered=sum(int((comparison.new & ~comparison.evidence.born_here).sum()) for comparison in comparisons),
        statuses=dict(statuses),
        alerts=would_alert,
        ratio_quantiles={f"{p:g}": round(float(np.percentile(ratios, p)), 6) for p in PERCENT} if len(ratios) else {},
        coverage=round(float(covered.mean()), 5) if len(covered) else None,
        grid=[_row(comparisons, policy, *point) for point in _grid(policy)],
    )


def summed_grid(results: Sequence[NullResult]) -> list[GridRow]:
    """The grids of several nulls, added up."""
    return [
        rows[0].model_copy(
            update={
                "checkpoints": total([row.checkpoints for row in rows]),
                "features": total([row.features for row in rows]),
            }
        )
        for rows in zip(*(result.grid for result in results if result.grid), strict=True)
    ]


def rehearse_rules(
    session: Session, family_id: str, comparisons: Sequence[ParentComparison], before: dict[int, str]
) -> list[WouldAlert]:
    """Alerts that the family's rules would raise for each comparison. before: number -> status at the checkpoint."""
    would_alert: dict[str, WouldAlert] = {}
    for comparison in comparisons:
        pairs = zip(comparison.numbers.tolist(), comparison.judgement.status, strict=True)
        transitions = {number: (before.get(number), str(status)) for number, status in pairs}
        for rule, features in alerts.rehearse(session, family_id=family_id, came=transitions):
            entry = would_alert.setdefault(rule.id, WouldAlert(rule=rule.id, name=rule.name, comparisons=0, features=0))
            entry.comparisons += 1
            entry.features += features
    return list(would_alert.values())


def _places(comparisons: Sequence[ParentComparison]) -> Rate | None:
    """Features reported in other places, of those with places; None without own codes."""
    if any(comparison.activity is None for comparison in comparisons):
        return None
    codes = np.concatenate([comparison.judgement.places for comparison in comparisons])
    changed = np.isin(codes, [places.code for places in PLACES_CHANGED])
    return rate(int(changed.sum()), int((changed | (codes == Places.SAME.code)).sum()))


def _known(comparison: ParentComparison) -> Bools:
    """bool [m] features that existed before and have a ratio."""
    return np.isfinite(comparison.judgement.projection_ratio) & comparison.evidence.there_before & ~comparison.new


def _contains_one(judgement: Judgement) -> Bools:
    return (judgement.projection_ratio_lo <= 1 + SLACK) & (judgement.projection_ratio_hi >= 1 - SLACK)


def _significant(comparison: ParentComparison, policy: Policy) -> int:
    ratio, q = comparison.judgement.projection_ratio, np.nan_to_num(comparison.judgement.q_value, nan=1.0)
    outside = (ratio < policy.suppressed_below) | (ratio > policy.amplified_above)
    return int((_known(comparison) & (q <= comparison.judgement.level) & outside).sum())


def _grid(policy: Policy) -> list[tuple[Thresholds, bool]]:
    """(thresholds, whether they are the family's own): the family's first, then others from wide to narrow."""
    own = Thresholds(suppressed_below=policy.suppressed_below, amplified_above=policy.amplified_above, fdr=policy.fdr)
    points = [
        Thresholds(suppressed_below=band, amplified_above=round(1 / band, 4), fdr=fdr)
        for band, fdr in product(BANDS, RATES)
    ]
    return [(own, True), *((point, False) for point in points if point != own)]


def _row(comparisons: Sequence[ParentComparison], policy: Policy, point: Thresholds, current: bool) -> GridRow:
    """The same evidence, judged with other thresholds."""
    changed = policy.model_copy(update=point.model_dump())
    parts: list[tuple[Rate, Rate]] = []
    for comparison in comparisons:
        judgement = judge(comparison.evidence, changed)
        alarms = false_alarms(comparison.evidence, judgement)
        of = judged_features(comparison, alarms)
        parts.append((rate(int(alarms.any()), 1), rate(int(alarms.sum()), of)))
    checkpoints, features = total([part[0] for part in parts]), total([part[1] for part in parts])
    return GridRow(**point.model_dump(), current=current, checkpoints=checkpoints, features=features)
