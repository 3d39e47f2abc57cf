"""Raises and resolves alerts. Webhooks receive each change once, and nothing while an alert is muted."""

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from featurewatch.service.alerts import queries
from featurewatch.service.alerts.schemas import AlertState, view
from featurewatch.service.kit import clock
from featurewatch.service.models import Alert, AlertRule, Checkpoint
from featurewatch.service.webhooks import logic as webhooks


def key(rule: AlertRule, subject: str) -> str:
    """Key of a rule's alert about a checkpoint, or about what a sweep names by its own key."""
    return f"{rule.condition['kind']}:{rule.id}:{subject}"


def new(rule: AlertRule, key: str, *, family_id: str, checkpoint_id: str | None = None) -> Alert:
    """An alert of a rule that is not stored yet."""
    return Alert(
        kind=rule.condition["kind"],
        key=key,
        rule_id=rule.id,
        family_id=family_id,
        checkpoint_id=checkpoint_id,
        created_at=clock.utcnow(),
    )


def put(session: Session, alert: Alert, summary: str, evidence: list[dict[str, Any]]) -> Alert | None:
    """Raise a new or resolved alert, and return it. Any other only gets the new summary and evidence: None."""
    if alert.state in (AlertState.OPEN, AlertState.ACKNOWLEDGED, AlertState.MUTED):
        alert.summary, alert.evidence = summary, evidence
        session.flush()
        return None
    now = clock.utcnow()
    mute = queries.mute_of(session, alert.rule_id, alert.family_id, now)
    alert.state = AlertState.MUTED if mute else AlertState.OPEN
    alert.muted_until = mute.muted_until if mute else None
    alert.summary, alert.evidence, alert.updated_at = summary, evidence, now
    session.add(alert)
    session.flush()
    if not mute:
        _send(session, "alert.raised", alert)
    return alert


def resolve(session: Session, alert: Alert, *, seen_at: Checkpoint | None = None) -> None:
    """Resolve an alert, because the checkpoint `seen_at` shows that it is over or because somebody said so."""
    muted = alert.state == AlertState.MUTED
    alert.state, alert.muted_until, alert.updated_at = AlertState.RESOLVED, None, clock.utcnow()
    session.flush()
    if not muted:
        _send(session, "alert.resolved", alert, resolved_by=seen_at.name if seen_at else None)


def unmute(session: Session, now: datetime) -> None:
    """Reopen the alerts whose mute has ended, and send them again."""
    for alert in queries.mutes_over(session, now):
        alert.state, alert.muted_until, alert.updated_at = AlertState.OPEN, None, now
        session.flush()
        _send(session, "alert.raised", alert)


def _send(session: Session, type_: str, alert: Alert, **more: Any) -> None:
    named = queries.alert(session, alert.id)
    assert named is not None
    webhooks.emit(
        session,
        type=type_,
        family_id=alert.family_id,
        data={"alert": view(*named).model_dump(mode="json"), **more},
        # An alert can be raised again after it was resolved: the moment tells the two apart.
        key=f"{alert.id}:{alert.updated_at.isoformat()}",
    )
