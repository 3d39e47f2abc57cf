"""SQL of checkpoints."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, func, select
from sqlalchemy.orm import Session, aliased

from featurewatch.service.kit.pages import SortKey, keyset
from featurewatch.service.models import Alert, AlertRule, Checkpoint, Run, Source
from featurewatch.service.runs.kinds import RunKind

# Built once: nearly every request runs it, and it takes longer to build than to run.
_BY_NAME = select(Checkpoint).where(Checkpoint.family_id == bindparam("family"), Checkpoint.name == bindparam("name"))


def by_name(session: Session, family_id: str, name: str) -> Checkpoint | None:
    """The checkpoint of a family with this name."""
    return session.scalar(_BY_NAME, {"family": family_id, "name": name})


def newest(session: Session, family_id: str, states: Sequence[str]) -> Sequence[Checkpoint]:
    """Checkpoints of a family in these states, newest first."""
    statement = select(Checkpoint).where(Checkpoint.family_id == family_id, Checkpoint.state.in_(states))
    return session.scalars(statement.order_by(Checkpoint.created_at.desc(), Checkpoint.id.desc())).all()


def newest_judged(session: Session, family_ids: Sequence[str]) -> dict[str, Checkpoint]:
    """Family id -> its newest judged checkpoint."""
    of_families = Checkpoint.family_id.in_(family_ids), Checkpoint.state == "judged"
    newest = session.scalars(_newest_of_each(Checkpoint, Checkpoint.family_id, *of_families))
    return {checkpoint.family_id: checkpoint for checkpoint in newest}


def _newest_of_each(table: Any, group: Any, *conditions: ColumnElement[bool]) -> Select[Any]:
    """Select the newest row of each group among those that meet the conditions."""
    order = func.row_number().over(partition_by=group, order_by=(table.created_at.desc(), table.id.desc()))
    ranked = select(table.id, order.label("place")).where(*conditions).subquery()
    return select(table).join(ranked, (ranked.c.id == table.id) & (ranked.c.place == 1))


def judged(session: Session, family_id: str) -> dict[str, str | None]:
    """Name -> name of its parent, for the judged checkpoints of a family, oldest first."""
    parent = aliased(Checkpoint)
    statement = (
        select(Checkpoint.name, parent.name)
        .outerjoin(parent, parent.id == Checkpoint.parent_id)
        .where(Checkpoint.family_id == family_id, Checkpoint.state == "judged")
        .order_by(Checkpoint.created_at, Checkpoint.id)
    )
    return {row[0]: row[1] for row in session.execute(statement)}


def lineage(session: Session, family_id: str) -> dict[str, str | None]:
    """Checkpoint id -> id of its parent, for a whole family."""
    statement = select(Checkpoint.id, Checkpoint.parent_id).where(Checkpoint.family_id == family_id)
    return {row[0]: row[1] for row in session.execute(statement)}


def names(session: Session, checkpoint_ids: Sequence[str]) -> dict[str, str]:
    """Checkpoint id -> name."""
    statement = select(Checkpoint.id, Checkpoint.name).where(Checkpoint.id.in_(checkpoint_ids))
    return {row[0]: row[1] for row in session.execute(statement)}


def page(
    session: Session, family_id: str, *, state: str | None, after: Sequence[Any] | None, limit: int
) -> Sequence[Checkpoint]:
    """Checkpoints of a family, oldest first; one row more than `limit` if there are more."""
    statement = select(Checkpoint).where(Checkpoint.family_id == family_id)
    if state is not None:
        statement = statement.where(Checkpoint.state == state)
    keys = [SortKey(Checkpoint.created_at), SortKey(Checkpoint.id)]
    return session.scalars(keyset(statement, keys, after, limit)).all()


def of_family(session: Session, family_id: str) -> Sequence[Checkpoint]:
    """All checkpoints of a family, oldest first."""
    statement = select(Checkpoint).where(Checkpoint.family_id == family_id)
    return session.scalars(statement.order_by(Checkpoint.created_at, Checkpoint.id)).all()


def newest_runs(session: Session, checkpoint_ids: Sequence[str]) -> dict[str, Run]:
    """Checkpoint id -> its newest onboarding run."""
    of_checkpoints = Run.checkpoint_id.in_(checkpoint_ids), Run.kind == RunKind.ONBOARD
    runs = session.scalars(_newest_of_each(Run, Run.checkpoint_id, *of_checkpoints))
    return {run.checkpoint_id: run for run in runs if run.checkpoint_id is not None}


def activations_kept(session: Session, checkpoint_ids: Sequence[str]) -> dict[str, bool]:
    """Checkpoint id -> whether the activations at all its hook points are kept. Unread checkpoints are left out."""
    statement = (
        select(Source.checkpoint_id, func.count() == func.count(Source.activations))
        .where(Source.checkpoint_id.in_(checkpoint_ids))
        .group_by(Source.checkpoint_id)
    )
    return {row[0]: bool(row[1]) for row in session.execute(statement)}


def widths(session: Session, family_id: str) -> dict[str, int]:
    """Hook point -> width, from the family's newest judged checkpoint."""
    statement = (
        select(Source.hook_point, Source.d_model)
        .join(Checkpoint, Checkpoint.id == Source.checkpoint_id)
        .where(Checkpoint.family_id == family_id, Checkpoint.state == "judged")
        .order_by(Checkpoint.created_at)
    )
    return {row[0]: row[1] for row in session.execute(statement)}


def alerts(session: Session, checkpoint_id: str) -> Sequence[Any]:
    """(id, rule, state, summary, created_at) of the alerts of a checkpoint, oldest first."""
    return session.execute(_ALERTS, {"checkpoint": checkpoint_id}).all()


# Built once: every report runs it.
_ALERTS = (
    select(Alert.id, AlertRule.name.label("rule"), Alert.state, Alert.summary, Alert.created_at)
    .join(AlertRule, AlertRule.id == Alert.rule_id)
    .where(Alert.checkpoint_id == bindparam("checkpoint"))
    .order_by(Alert.created_at, Alert.id)
)
