"""Alert rules against how well the dictionary describes a checkpoint: its FVU, in itself or over that of its parent."""

from typing import Any

from sqlalchemy.orm import Session

from featurewatch.service.alerts import queries, raising
from featurewatch.service.alerts.schemas import CONDITION, QualityCondition
from featurewatch.service.models import Alert, Checkpoint, Family
from featurewatch.service.verdicts import queries as verdicts


def evaluate(session: Session, *, family: Family, checkpoint: Checkpoint) -> list[Alert]:
    """Hold the rules on quality against a checkpoint, in the transaction that judged it. The alerts now raised.

    Where an ancestor's alert still holds at the same limit, this is the same one and none is raised. A checkpoint that
    is within an ancestor's limit again resolves its alert.
    """
    fvu = _fvu(checkpoint)
    if fvu is None:
        return []
    parent = verdicts.checkpoint(session, checkpoint.parent_id) if checkpoint.parent_id else None
    found = queries.unresolved(session, verdicts.ancestors(session, checkpoint))
    before = [(alert, rule, alert.evidence[0]["limit"]) for alert, rule in found if alert.kind == "quality"]
    raised = []
    for rule in queries.rules_for(session, family.id):
        condition = CONDITION.validate_python(rule.condition)
        if not isinstance(condition, QualityCondition):
            continue
        limit = _limit(condition, parent)
        evidence: list[dict[str, Any]] = []
        if fvu > limit and not any(other is rule and least >= limit for _, other, least in before):
            evidence = [{"fvu": fvu, "limit": limit, "parent_fvu": _fvu(parent)}]
        summary = f"{checkpoint.name}: FVU {fvu:.3g}, at most {limit:.3g} may be"
        raised.append(raising.settle(session, rule, family, checkpoint, summary, evidence))
    for alert, _, limit in before:
        if fvu <= limit:
            raising.resolve(session, alert, seen_at=checkpoint)
    return [alert for alert in raised if alert is not None]


def _limit(condition: QualityCondition, parent: Checkpoint | None) -> float:
    """The FVU that is too much from there on; without an FVU of the parent, a ratio to it says nothing."""
    limits = [float("inf")]
    if condition.max_fvu is not None:
        limits.append(condition.max_fvu)
    before = _fvu(parent)
    if condition.max_fvu_ratio is not None and before is not None:
        limits.append(condition.max_fvu_ratio * before)
    return min(limits)


def _fvu(checkpoint: Checkpoint | None) -> float | None:
    found = (checkpoint.quality or {}).get("fvu") if checkpoint else None
    return float(found) if isinstance(found, int | float) else None
