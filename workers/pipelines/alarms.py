"""What the judgements of nulls amount to: every verdict of a change is a false alarm."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from featurewatch.service.alerts import logic as alerts
from featurewatch.service.calibrations.schemas import (
    GridRow,
    NullName,
    NullResult,
    Rate,
    Thresholds,
    Unavailable,
    WouldAlert,
    rate,
    total,
)
from featurewatch.service.verdicts.judge import Bools, Evidence, Judgement, judge
from featurewatch.service.verdicts.policy import Policy
from featurewatch.service.verdicts.statuses import Status

BANDS = (0.5, 0.7, 0.8, 0.9, 0.95)
"""`suppressed_below` of the grid; `amplified_above` is its inverse."""
RATES = (0.01, 0.05, 0.1)
"""`fdr` of the grid."""
PERCENT = (0.1, 1, 5, 50, 95, 99, 99.9)
SLACK = 1e-4
"""An interval holds 1 where it misses it by no more: of equal numbers only their rounding is left."""


@dataclass
class Comparison:
    """A null's version of a checkpoint judged against the checkpoint."""

    numbers: np.ndarray
    """int64 [m] feature numbers"""
    new: Bools
    """[m] columns that the extension onto the null appended"""
    evidence: Evidence
    judgement: Judgement


def false_alarms(evidence: Evidence, judgement: Judgement) -> Bools:
    """[m] features of which a change is said: all but those that are present, indeterminate, or as absent as before."""
    quiet = np.isin(judgement.status, [Status.PRESENT, Status.INDETERMINATE])
    still_gone = ~evidence.there_before & np.isin(judgement.status, [Status.ABSENT])
    return ~(quiet | still_gone)


def judged_features(comparison: Comparison, alarms: Bools) -> int:
    """Features that the comparison had something to say of."""
    return int((np.isfinite(comparison.judgement.projection_ratio) | alarms).sum())


def unavailable(null: NullName, code: str, detail: str) -> NullResult:
    """The result of a null that could not be had."""
    reason = Unavailable(code=code, detail=detail)
    return NullResult(null=null, unavailable=reason, checkpoints=rate(0, 0), features=rate(0, 0))


def result(
    null: NullName,
    comparisons: Sequence[Comparison],
    policy: Policy,
    settings: dict[str, Any],
    would_alert: list[WouldAlert],
) -> NullResult:
    """What was said of a null, over all its comparisons."""
    alarms = [false_alarms(one.evidence, one.judgement) for one in comparisons]
    known = [_known(one) for one in comparisons]
    ratios = np.concatenate([one.judgement.projection_ratio[k] for one, k in zip(comparisons, known, strict=True)])
    held = np.concatenate([_holds_one(one.judgement)[k] for one, k in zip(comparisons, known, strict=True)])
    statuses = Counter(str(status) for one in comparisons for status in one.judgement.status)
    return NullResult(
        null=null,
        settings=settings,
        checkpoints=rate(sum(bool(part.any()) for part in alarms), len(comparisons)),
        features=rate(
            sum(int(part.sum()) for part in alarms),
            sum(judged_features(one, part) for one, part in zip(comparisons, alarms, strict=True)),
        ),
        significant=sum(_significant(one, policy) for one in comparisons),
        emerged=sum(int((one.new & one.evidence.born_here).sum()) for one in comparisons),
        discovered=sum(int((one.new & ~one.evidence.born_here).sum()) for one in comparisons),
        statuses=dict(statuses),
        alerts=would_alert,
        ratio_quantiles={f"{p:g}": round(float(np.percentile(ratios, p)), 6) for p in PERCENT} if len(ratios) else {},
        coverage=round(float(held.mean()), 5) if len(held) else None,
        grid=[_row(comparisons, policy, *point) for point in _grid(policy)],
    )


def summed_grid(results: Sequence[NullResult]) -> list[GridRow]:
    """The grids of several nulls as one."""
    return [
        rows[0].model_copy(
            update={
                "checkpoints": total([row.checkpoints for row in rows]),
                "features": total([row.features for row in rows]),
            }
        )
        for rows in zip(*(one.grid for one in results if one.grid), strict=True)
    ]


def rehearsed(
    session: Session, family_id: str, comparisons: Sequence[Comparison], before: dict[int, str]
) -> list[WouldAlert]:
    """The family's alert rules against each comparison, raising nothing. before: number -> status at the checkpoint."""
    met: dict[str, WouldAlert] = {}
    for one in comparisons:
        pairs = zip(one.numbers.tolist(), one.judgement.status, strict=True)
        came = {number: (before.get(number), str(status)) for number, status in pairs}
        for rule, features in alerts.rehearse(session, family_id=family_id, came=came):
            entry = met.setdefault(rule.id, WouldAlert(rule=rule.id, name=rule.name, comparisons=0, features=0))
            entry.comparisons += 1
            entry.features += features
    return list(met.values())


def _known(one: Comparison) -> Bools:
    """Features that were there and have a ratio."""
    return np.isfinite(one.judgement.projection_ratio) & one.evidence.there_before & ~one.new


def _holds_one(judgement: Judgement) -> Bools:
    return (judgement.projection_ratio_lo <= 1 + SLACK) & (judgement.projection_ratio_hi >= 1 - SLACK)


def _significant(one: Comparison, policy: Policy) -> int:
    ratio, q = one.judgement.projection_ratio, np.nan_to_num(one.judgement.q_value, nan=1.0)
    outside = (ratio < policy.suppressed_below) | (ratio > policy.amplified_above)
    return int((_known(one) & (q <= one.judgement.level) & outside).sum())


def _grid(policy: Policy) -> list[tuple[Thresholds, bool]]:
    """The family's own thresholds first, then the others, from wide to narrow."""
    own = Thresholds(suppressed_below=policy.suppressed_below, amplified_above=policy.amplified_above, fdr=policy.fdr)
    points = [
        Thresholds(suppressed_below=band, amplified_above=round(1 / band, 4), fdr=fdr)
        for band, fdr in product(BANDS, RATES)
    ]
    return [(own, True), *((point, False) for point in points if point != own)]


def _row(comparisons: Sequence[Comparison], policy: Policy, point: Thresholds, current: bool) -> GridRow:
    """The same evidence, judged by other thresholds."""
    changed = policy.model_copy(update=point.model_dump())
    parts: list[tuple[Rate, Rate]] = []
    for one in comparisons:
        judgement = judge(one.evidence, changed)
        alarms = false_alarms(one.evidence, judgement)
        of = judged_features(one, alarms)
        parts.append((rate(int(alarms.any()), 1), rate(int(alarms.sum()), of)))
    checkpoints, features = total([part[0] for part in parts]), total([part[1] for part in parts])
    return GridRow(**point.model_dump(), current=current, checkpoints=checkpoints, features=features)
