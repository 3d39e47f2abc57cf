"""Raising and resolving an alert, which is of one (rule, checkpoint): told by webhook, unless its rule is muted."""

from typing import Any

from sqlalchemy.orm import Session

from service.alerts import queries
from service.alerts.schemas import AlertState, view
from service.kit import clock
from service.models import Alert, AlertRule, Checkpoint, Family
from service.webhooks import logic as webhooks


def settle(
    session: Session,
    rule: AlertRule,
    family: Family,
    checkpoint: Checkpoint,
    summary: str,
    evidence: list[dict[str, Any]],
) -> Alert | None:
    """Raise the rule's alert at a checkpoint where there is evidence, resolve it where there is none (any more).

    The alert where it is news that it was raised, else None.
    """
    alert = queries.raised(session, rule.id, checkpoint.id)
    if evidence:
        return _raise(session, rule, family, checkpoint, alert, summary, evidence)
    if alert is not None and alert.state != AlertState.RESOLVED:
        resolve(session, alert, rule, family, raised_at=checkpoint.name, seen_at=checkpoint)
    return None


def _raise(
    session: Session,
    rule: AlertRule,
    family: Family,
    checkpoint: Checkpoint,
    alert: Alert | None,
    summary: str,
    evidence: list[dict[str, Any]],
) -> Alert | None:
    now = clock.utcnow()
    if alert is not None and alert.state != AlertState.RESOLVED:
        alert.summary, alert.evidence = summary, evidence
        session.flush()
        return None
    if alert is None:
        alert = Alert(rule_id=rule.id, family_id=family.id, checkpoint_id=checkpoint.id, created_at=now)
    quiet = queries.mute_of(session, rule.id, family.id, now)
    alert.state = AlertState.MUTED if quiet else AlertState.OPEN
    alert.muted_until = quiet.muted_until if quiet else None
    alert.summary, alert.evidence, alert.updated_at = summary, evidence, now
    queries.add(session, alert)
    if not quiet:
        _emit(session, "alert.raised", alert, rule, family, checkpoint.name)
    return alert


def resolve(
    session: Session, alert: Alert, rule: AlertRule, family: Family, *, raised_at: str, seen_at: Checkpoint
) -> None:
    """It no longer holds, as `seen_at` shows."""
    quiet = alert.state == AlertState.MUTED
    alert.state, alert.muted_until, alert.updated_at = AlertState.RESOLVED, None, clock.utcnow()
    session.flush()
    if not quiet:
        _emit(session, "alert.resolved", alert, rule, family, raised_at, resolved_by=seen_at.name)


def _emit(
    session: Session, type_: str, alert: Alert, rule: AlertRule, family: Family, checkpoint: str, **more: Any
) -> None:
    webhooks.emit(
        session,
        type=type_,
        family_id=family.id,
        data={"alert": view(alert, rule.name, family.name, checkpoint).model_dump(mode="json"), **more},
        # An alert can be raised again after it was resolved: the moment tells the two apart.
        key=f"{alert.id}:{alert.updated_at.isoformat()}",
    )
