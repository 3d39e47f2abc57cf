"""SQL of alert rules and alerts."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Select, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from featurewatch.service.families.queries import LISTED
from featurewatch.service.models import Alert, AlertRule, Checkpoint, Family, Feature, Run, Verdict
from featurewatch.service.models.alert import UNRESOLVED
from featurewatch.service.runs.states import FINAL
from featurewatch.service.verdicts.statuses import Status

Named = tuple[Alert, str | None, str | None, str | None]
"""An alert with the names of its rule, family and checkpoint."""
# Repeats the condition of the partial index, or SQLite would not use it.
COUNT_OPEN = select(func.count()).where(UNRESOLVED, Alert.state == "open")


def rules(family: str | None = None) -> Select[AlertRule, str]:
    """Select rules with the names of their families, in no order."""
    statement = select(AlertRule, Family.name).outerjoin(Family, Family.id == AlertRule.family_id)
    return statement if family is None else statement.where(Family.name == family)


def rule(session: Session, rule_id: str) -> tuple[AlertRule, str | None] | None:
    """A rule with the name of its family."""
    return session.execute(rules().where(AlertRule.id == rule_id)).one_or_none()


def all_rules(session: Session) -> Sequence[AlertRule]:
    """All rules, including disabled ones, oldest first."""
    return session.scalars(select(AlertRule).order_by(AlertRule.created_at, AlertRule.id)).all()


def rules_for(session: Session, family_id: str) -> Sequence[AlertRule]:
    """Enabled rules that apply to a family, oldest first."""
    return session.scalars(
        select(AlertRule)
        .where(AlertRule.enabled, or_(AlertRule.family_id.is_(None), AlertRule.family_id == family_id))
        .order_by(AlertRule.created_at, AlertRule.id)
    ).all()


def alerts(wanted: Mapping[Any, str | None] | None = None) -> Select[Alert, str, str, str]:
    """Select alerts with the names of rule, family and checkpoint, unordered. wanted: column -> value, None: any."""
    return (
        select(Alert, AlertRule.name, Family.name, Checkpoint.name)
        .outerjoin(AlertRule, AlertRule.id == Alert.rule_id)
        .outerjoin(Family, Family.id == Alert.family_id)
        .outerjoin(Checkpoint, Checkpoint.id == Alert.checkpoint_id)
        .where(*(column == value for column, value in (wanted or {}).items() if value is not None))
    )


def alert(session: Session, alert_id: str) -> Named | None:
    """An alert with the names of its rule, family and checkpoint."""
    return session.execute(alerts({Alert.id: alert_id})).one_or_none()


def unresolved(session: Session, checkpoint_ids: Collection[str]) -> Sequence[tuple[Alert, AlertRule]]:
    """Unresolved alerts of checkpoints, with their rules."""
    return session.execute(
        select(Alert, AlertRule)
        .join(AlertRule, AlertRule.id == Alert.rule_id)
        .where(Alert.checkpoint_id.in_(checkpoint_ids), Alert.state != "resolved")
        .order_by(Alert.created_at, Alert.id)
    ).all()


def count_open(session: Session) -> int:
    """Number of open alerts."""
    return session.scalar(COUNT_OPEN) or 0


def unresolved_of(session: Session, kinds: Collection[str]) -> Sequence[Alert]:
    """Unresolved alerts of some kinds, locked so that only one of two concurrent sweeps resolves them."""
    statement = select(Alert).where(Alert.kind.in_(kinds), Alert.state != "resolved")
    return session.scalars(statement.order_by(Alert.created_at, Alert.id).with_for_update()).all()


def unresolved_of_rule(session: Session, rule_id: str) -> Sequence[Alert]:
    """Unresolved alerts of a rule."""
    return session.scalars(select(Alert).where(Alert.rule_id == rule_id, Alert.state != "resolved")).all()


def newest(session: Session, key: str) -> Alert | None:
    """The newest alert with a key, in any state."""
    statement = select(Alert).where(Alert.key == key).order_by(Alert.created_at.desc(), Alert.id.desc())
    return session.scalars(statement.limit(1)).one_or_none()


def mute_of(session: Session, rule_id: str | None, family_id: str | None, now: datetime) -> Alert | None:
    """A muted alert of a rule in a family whose mute has not ended. None without a rule."""
    return session.scalars(
        select(Alert)
        .where(Alert.rule_id.is_not(None))
        .where(Alert.rule_id == rule_id, Alert.family_id == family_id, Alert.state == "muted")
        .where(or_(Alert.muted_until.is_(None), Alert.muted_until > now))
        .order_by(Alert.created_at.desc())
        .limit(1)
    ).one_or_none()


def mutes_over(session: Session, now: datetime) -> Sequence[Alert]:
    """Muted alerts whose mute has ended, locked."""
    statement = select(Alert).where(Alert.state == "muted", Alert.muted_until <= now)
    return session.scalars(statement.order_by(Alert.created_at, Alert.id).with_for_update()).all()


def transitions(
    session: Session, family_id: str, checkpoint_id: str, statuses: Collection[str]
) -> Sequence[tuple[Verdict, Feature]]:
    """Features that came into one of the statuses at a checkpoint, largest change first.

    A feature without a verdict at the parent came into its status, unless that is `present`: a feature that is seen for
    the first time has not changed.
    """
    return session.execute(
        select(Verdict, Feature)
        .join(Feature, (Feature.family_id == Verdict.family_id) & (Feature.number == Verdict.feature))
        .where(Verdict.checkpoint_id == checkpoint_id, Verdict.family_id == family_id, Verdict.status.in_(statuses))
        .where(Verdict.previous_status.is_distinct_from(Verdict.status))
        .where(or_(Verdict.previous_status.is_not(None), Verdict.status != Status.PRESENT))
        .order_by(Verdict.change.desc(), Verdict.feature)
    ).all()


def moves(
    session: Session, family_id: str, checkpoint_id: str, parent_id: str, words: Collection[str]
) -> Sequence[tuple[Verdict, Feature, str | None]]:
    """Features whose places came into the words at a checkpoint, with their places at its parent.

    The largest gain or loss of activation comes first.
    """
    above = aliased(Verdict)
    size = func.coalesce(Verdict.gained_share, 0) + func.coalesce(Verdict.lost_share, 0)
    rows = session.execute(
        select(Verdict, Feature, above.places)
        .join(Feature, (Feature.family_id == Verdict.family_id) & (Feature.number == Verdict.feature))
        .outerjoin(above, (above.checkpoint_id == parent_id) & (above.feature == Verdict.feature))
        .where(Verdict.checkpoint_id == checkpoint_id, Verdict.family_id == family_id, Verdict.places.in_(words))
        .where(or_(above.places.is_(None), above.places.not_in(words)))
        .order_by(size.desc(), Verdict.feature)
    )
    return [(row[0], row[1], row[2]) for row in rows]


def last_judged(session: Session) -> Sequence[tuple[Family, datetime | None]]:
    """Every family with the time when one of its checkpoints was last judged."""
    last = (
        select(Checkpoint.family_id, func.max(Checkpoint.judged_at).label("at"))
        .where(Checkpoint.state == "judged")
        .group_by(Checkpoint.family_id)
        .subquery()
    )
    statement = select(Family, last.c.at).outerjoin(last, last.c.family_id == Family.id).where(LISTED)
    return session.execute(statement.order_by(Family.id)).all()


def failures(session: Session) -> Sequence[tuple[Run, str | None]]:
    """Runs that failed after the last success of their family and kind, with the names of their checkpoints.

    Sorted by family and kind, then oldest first.
    """
    last = (
        select(Run.family_id, Run.kind, func.max(Run.finished_at).label("at"))
        .where(Run.state == "succeeded")
        .group_by(Run.family_id, Run.kind)
        .subquery()
    )
    return session.execute(
        select(Run, Checkpoint.name)
        .outerjoin(last, (last.c.family_id == Run.family_id) & (last.c.kind == Run.kind))
        .outerjoin(Checkpoint, Checkpoint.id == Run.checkpoint_id)
        .join(Family, Family.id == Run.family_id)
        .where(LISTED, Run.state == "failed", or_(last.c.at.is_(None), Run.finished_at > last.c.at))
        .order_by(Run.family_id, Run.kind, Run.finished_at, Run.id)
    ).all()


def any_under_way(session: Session, run_ids: Collection[str]) -> bool:
    """Whether any of the runs has not ended."""
    statement = select(exists().where(Run.id.in_(run_ids), Run.state.not_in(FINAL)))
    return bool(session.scalar(statement))
