"""SQL of alert rules and alerts."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from service.kit.pages import SortKey, keyset
from service.models import Alert, AlertRule, Checkpoint, Family, Feature, Verdict


def rules_page(
    session: Session, *, family: str | None, after: Sequence[Any] | None, limit: int
) -> Sequence[tuple[AlertRule, str | None]]:
    """Rules with their family's name, newest first; a row more than `limit` where there are more."""
    statement: Any = select(AlertRule, Family.name).outerjoin(Family, Family.id == AlertRule.family_id)
    if family is not None:
        statement = statement.where(Family.name == family)
    keys = [SortKey(AlertRule.created_at, descending=True), SortKey(AlertRule.id, descending=True)]
    return [(row[0], row[1]) for row in session.execute(keyset(statement, keys, after, limit))]


def rule(session: Session, rule_id: str) -> tuple[AlertRule, str | None] | None:
    """One rule with its family's name."""
    row: Any = session.execute(
        select(AlertRule, Family.name)
        .outerjoin(Family, Family.id == AlertRule.family_id)
        .where(AlertRule.id == rule_id)
    ).one_or_none()
    return None if row is None else (row[0], row[1])


def rules_for(session: Session, family_id: str) -> Sequence[AlertRule]:
    """Enabled rules of a family and of every family, oldest first."""
    return session.scalars(
        select(AlertRule)
        .where(AlertRule.enabled, or_(AlertRule.family_id.is_(None), AlertRule.family_id == family_id))
        .order_by(AlertRule.created_at, AlertRule.id)
    ).all()


def add(session: Session, row: AlertRule | Alert) -> None:
    """Store a new row."""
    session.add(row)
    session.flush()


def remove_rule(session: Session, row: AlertRule) -> None:
    """Remove a rule; the database removes its alerts."""
    session.delete(row)
    session.flush()


def alerts_page(
    session: Session,
    *,
    family: str | None,
    checkpoint: str | None,
    rule_id: str | None,
    state: str | None,
    after: Sequence[Any] | None,
    limit: int,
) -> Sequence[tuple[Alert, str, str, str]]:
    """Alerts with the names of rule, family and checkpoint, newest first; one more than `limit` where there are."""
    statement = _alerts()
    if family is not None:
        statement = statement.where(Family.name == family)
    if checkpoint is not None:
        statement = statement.where(Checkpoint.name == checkpoint)
    if rule_id is not None:
        statement = statement.where(Alert.rule_id == rule_id)
    if state is not None:
        statement = statement.where(Alert.state == state)
    keys = [SortKey(Alert.created_at, descending=True), SortKey(Alert.id, descending=True)]
    rows = session.execute(keyset(statement, keys, after, limit))
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def alert(session: Session, alert_id: str) -> tuple[Alert, str, str, str] | None:
    """One alert with the names of rule, family and checkpoint."""
    row = session.execute(_alerts().where(Alert.id == alert_id)).one_or_none()
    return None if row is None else (row[0], row[1], row[2], row[3])


def unresolved(session: Session, checkpoint_ids: Collection[str]) -> Sequence[tuple[Alert, AlertRule, str]]:
    """Alerts of the checkpoints that are not resolved, with their rules and the checkpoints' names."""
    rows = session.execute(
        select(Alert, AlertRule, Checkpoint.name)
        .join(AlertRule, AlertRule.id == Alert.rule_id)
        .join(Checkpoint, Checkpoint.id == Alert.checkpoint_id)
        .where(Alert.checkpoint_id.in_(checkpoint_ids), Alert.state != "resolved")
        .order_by(Alert.created_at, Alert.id)
    )
    return [(row[0], row[1], row[2]) for row in rows]


def raised(session: Session, rule_id: str, checkpoint_id: str) -> Alert | None:
    """The alert of a rule at a checkpoint, in whatever state."""
    return session.scalars(
        select(Alert).where(Alert.rule_id == rule_id, Alert.checkpoint_id == checkpoint_id)
    ).one_or_none()


def mute_of(session: Session, rule_id: str, family_id: str, now: datetime) -> Alert | None:
    """A muted alert of the rule in the family whose mute still holds."""
    return session.scalars(
        select(Alert)
        .where(Alert.rule_id == rule_id, Alert.family_id == family_id, Alert.state == "muted")
        .where(or_(Alert.muted_until.is_(None), Alert.muted_until > now))
        .order_by(Alert.created_at.desc())
        .limit(1)
    ).one_or_none()


def unmute(session: Session, now: datetime) -> None:
    """Open the alerts whose mute is over."""
    session.execute(
        update(Alert)
        .where(Alert.state == "muted", Alert.muted_until <= now)
        .values(state="open", muted_until=None, updated_at=now)
    )


def transitions(
    session: Session, family_id: str, checkpoint_id: str, statuses: Collection[str]
) -> Sequence[tuple[Verdict, Feature]]:
    """Features that came into one of the statuses at a checkpoint, largest change first.

    A feature without a verdict at the parent came into its status unless that is `present`: one that is merely seen
    for the first time has not changed.
    """
    rows = session.execute(
        select(Verdict, Feature)
        .join(Feature, (Feature.family_id == Verdict.family_id) & (Feature.number == Verdict.feature))
        .where(Verdict.checkpoint_id == checkpoint_id, Verdict.family_id == family_id, Verdict.status.in_(statuses))
        .where(Verdict.previous_status.is_distinct_from(Verdict.status))
        .where(or_(Verdict.previous_status.is_not(None), Verdict.status != "present"))
        .order_by(Verdict.change.desc(), Verdict.feature)
    )
    return [(row[0], row[1]) for row in rows]


def statuses_of(session: Session, checkpoint_id: str, features: Collection[int]) -> dict[int, str]:
    """Status of some features at a checkpoint."""
    rows = session.execute(
        select(Verdict.feature, Verdict.status).where(
            Verdict.checkpoint_id == checkpoint_id, Verdict.feature.in_(features)
        )
    )
    return {row[0]: row[1] for row in rows}


def _alerts() -> Any:
    return (
        select(Alert, AlertRule.name, Family.name, Checkpoint.name)
        .join(AlertRule, AlertRule.id == Alert.rule_id)
        .join(Family, Family.id == Alert.family_id)
        .join(Checkpoint, Checkpoint.id == Alert.checkpoint_id)
    )
