"""Alert rules against the signatures of a checkpoint: a signature that comes into a status, not one still in it."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from featurewatch.service.alerts import queries, raising
from featurewatch.service.alerts.schemas import CONDITION, SignatureCondition
from featurewatch.service.models import Alert, Checkpoint, Family, Reading, Signature
from featurewatch.service.verdicts import queries as verdicts

Row = tuple[Reading, Signature]


def evaluate(session: Session, *, family: Family, checkpoint: Checkpoint, readings: Sequence[Row]) -> list[Alert]:
    """Hold the rules on signatures against readings of a checkpoint, in the transaction that wrote them.

    The alerts now raised. Those of the checkpoint and of its ancestors whose signatures are out of the rule's statuses
    again are resolved; not to be able to say is not to be out of them.
    """
    raised = []
    for rule in queries.rules_for(session, family.id):
        condition = CONDITION.validate_python(rule.condition)
        if not isinstance(condition, SignatureCondition):
            continue
        of_these = [row for row in readings if condition.signature in (None, row[1].name)]
        came = [row for row in of_these if row[0].status in condition.statuses and _changed(row[0])]
        read = {row[1].name for row in of_these}
        # What another run has read stays.
        kept = [one for one in raising.held(session, rule, checkpoint) if one["signature"] not in read]
        evidence = kept + [_evidence(*row) for row in came]
        raised.append(raising.settle(session, rule, family, checkpoint, _summary(checkpoint, evidence), evidence))
    _resolve_ancestors(session, checkpoint, readings)
    return [alert for alert in raised if alert is not None]


def forget(session: Session, family: Family, signature: Signature) -> None:
    """Take a signature that is deleted out of the family's unresolved alerts; those of it alone are over."""
    for alert in queries.unresolved_of(session, ["signature"]):
        evidence = [one for one in alert.evidence if one["signature"] != signature.name]
        if alert.family_id != family.id or len(evidence) == len(alert.evidence):
            continue
        if evidence:
            alert.evidence = evidence
        else:
            raising.resolve(session, alert)


def _changed(row: Reading) -> bool:
    return row.previous_status is not None and row.previous_status != row.status


def _resolve_ancestors(session: Session, checkpoint: Checkpoint, readings: Sequence[Row]) -> None:
    statuses = {signature.name: reading.status for reading, signature in readings}
    ancestors = verdicts.ancestors(session, checkpoint)
    for alert, rule in queries.unresolved(session, ancestors):
        condition = CONDITION.validate_python(rule.condition)
        if not isinstance(condition, SignatureCondition):
            continue
        bad = {*condition.statuses, "indeterminate"}
        if all(statuses.get(one["signature"], "indeterminate") not in bad for one in alert.evidence):
            raising.resolve(session, alert, seen_at=checkpoint)


def _summary(checkpoint: Checkpoint, evidence: Sequence[dict[str, Any]]) -> str:
    return f"{checkpoint.name}: " + ", ".join(f"signature {one['signature']} {one['status']}" for one in evidence)


def _evidence(reading: Reading, signature: Signature) -> dict[str, Any]:
    names = ("strength_ratio", "strength_ratio_ci", "auroc", "auroc_ci", "reselected_auroc", "reselected_auroc_ci")
    return {
        "signature": signature.name,
        "status": reading.status,
        "previous_status": reading.previous_status,
        **{name: reading.figures[name] for name in names},
        "carriers": [one["feature"] for one in reading.carriers],
    }
