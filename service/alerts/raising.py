"""Raising and resolving alerts: what goes on is one alert, told once by webhook, and not at all while it is muted."""

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from featurewatch.service.alerts import queries
from featurewatch.service.alerts.schemas import AlertState, view
from featurewatch.service.kit import clock
from featurewatch.service.models import Alert, AlertRule, Checkpoint, Family
from featurewatch.service.webhooks import logic as webhooks


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
    key = _key(rule, checkpoint)
    alert = queries.newest(session, key)
    if evidence:
        alert = alert or Alert(
            kind=rule.condition["kind"],
            key=key,
            rule_id=rule.id,
            family_id=family.id,
            checkpoint_id=checkpoint.id,
            created_at=clock.utcnow(),
        )
        return put(session, alert, summary, evidence)
    if alert is not None and alert.state != AlertState.RESOLVED:
        resolve(session, alert, seen_at=checkpoint)
    return None


def held(session: Session, rule: AlertRule, checkpoint: Checkpoint) -> list[Any]:
    """Evidence of the rule's alert at a checkpoint, as far as there is one that is not resolved."""
    alert = queries.newest(session, _key(rule, checkpoint))
    return [] if alert is None or alert.state == AlertState.RESOLVED else alert.evidence


def put(session: Session, alert: Alert, summary: str, evidence: list[dict[str, Any]]) -> Alert | None:
    """Raise an alert that is new or resolved; of another one only renew what it says. It, where that is news."""
    if alert.state in (AlertState.OPEN, AlertState.ACKNOWLEDGED, AlertState.MUTED):
        alert.summary, alert.evidence = summary, evidence
        session.flush()
        return None
    now = clock.utcnow()
    quiet = queries.mute_of(session, alert.rule_id, alert.family_id, now)
    alert.state = AlertState.MUTED if quiet else AlertState.OPEN
    alert.muted_until = quiet.muted_until if quiet else None
    alert.summary, alert.evidence, alert.updated_at = summary, evidence, now
    queries.add(session, alert)
    if not quiet:
        _tell(session, "alert.raised", alert)
    return alert


def resolve(session: Session, alert: Alert, *, seen_at: Checkpoint | None = None) -> None:
    """It no longer holds, as `seen_at` shows, or somebody said so."""
    quiet = alert.state == AlertState.MUTED
    alert.state, alert.muted_until, alert.updated_at = AlertState.RESOLVED, None, clock.utcnow()
    session.flush()
    if not quiet:
        _tell(session, "alert.resolved", alert, resolved_by=seen_at.name if seen_at else None)


def unmute(session: Session, now: datetime) -> None:
    """Open the alerts whose mute is over, and tell of them: they still hold."""
    for alert in queries.mutes_over(session, now):
        alert.state, alert.muted_until, alert.updated_at = AlertState.OPEN, None, now
        session.flush()
        _tell(session, "alert.raised", alert)


def _key(rule: AlertRule, checkpoint: Checkpoint) -> str:
    return f"{rule.condition['kind']}:{rule.id}:{checkpoint.id}"


def _tell(session: Session, type_: str, alert: Alert, **more: Any) -> None:
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
