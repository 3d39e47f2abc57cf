"""SQL of deletions: finds and removes the rows that belong to a family or checkpoint."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CursorResult,
    LargeBinary,
    Select,
    Table,
    delete,
    func,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import Session, aliased

from featurewatch.service.kit.listed import one_of
from featurewatch.service.models import (
    Alert,
    AlertRule,
    Artifact,
    Base,
    Checkpoint,
    Deletion,
    DependencyGraph,
    Family,
    Feature,
    Lineage,
    Measurement,
    Reading,
    Signature,
    Source,
    Unreferenced,
    Verdict,
)

HIDDEN = "~"
"""Prefix of the name of a family that is being deleted. It is not allowed in other names."""
OF_NO_FAMILY = frozenset(
    {"api_key", "audit_entry", "deletion", "idempotency_record", "web_session", "webhook", "worker"}
)
"""Tables whose rows do not belong to a family."""
NAMED_BY_ARTIFACT = (Unreferenced.artifact, Artifact.name)
"""Key columns with artifact names, which start with the family's id."""


def hide(session: Session, family: Family) -> None:
    """Free the name of a family and mark it as being deleted."""
    family.name = HIDDEN + family.id
    session.add(Deletion(family_id=family.id))
    session.flush()


def under_way(session: Session) -> list[str]:
    """Ids of the families that are being deleted, in order of request."""
    statement = select(Deletion.family_id).where(Deletion.finished_at.is_(None))
    return list(session.scalars(statement.order_by(Deletion.requested_at, Deletion.family_id)))


def finished(session: Session, *, since: datetime | None = None) -> list[str]:
    """Ids of completely deleted families; with `since`, only those finished after it."""
    statement = select(Deletion.family_id).where(Deletion.finished_at.is_not(None))
    return list(session.scalars(statement if since is None else statement.where(Deletion.finished_at >= since)))


def take(session: Session, family_id: str) -> bool:
    """Lock an unfinished deletion until the transaction ends. False if another sweep has it, or it is finished."""
    statement = select(Deletion).where(Deletion.family_id == family_id, Deletion.finished_at.is_(None))
    return session.scalar(statement.with_for_update(skip_locked=True)) is not None


def finish(session: Session, family_id: str, now: datetime) -> None:
    """Remove the family's own row and mark the deletion as finished."""
    for column in NAMED_BY_ARTIFACT:
        session.execute(delete(column.class_).where(column.startswith(f"{family_id}/", autoescape=True)))
    session.execute(delete(Family).where(Family.id == family_id))
    session.execute(update(Deletion).where(Deletion.family_id == family_id).values(finished_at=now))


def owned(family_id: str) -> list[tuple[Table, ColumnElement[bool]]]:
    """(table, condition for this family's rows) of all tables except `family`, children before parents.

    Derived from foreign keys, so that a new table cannot be forgotten.
    """
    conditions: dict[str, ColumnElement[bool]] = {"family": Family.id == family_id}
    tables = [table for table in Base.metadata.sorted_tables if table.name != "family"]
    for table in tables:
        column = table.columns.get("family_id")
        if column is not None and column.foreign_keys:
            conditions[table.name] = column == family_id
            continue
        keys = sorted(table.foreign_keys, key=lambda key: key.parent.name)
        for key in keys:
            parent = key.column.table
            if parent.name in conditions:
                conditions[table.name] = key.parent.in_(select(key.column).where(conditions[parent.name]))
                break
    return [(table, conditions[table.name]) for table in reversed(tables) if table.name in conditions]


def has_arrays(table: Table) -> bool:
    """Whether rows can take megabytes."""
    return any(isinstance(column.type, LargeBinary) for column in table.columns)


def remove_some(session: Session, table: Table, condition: ColumnElement[bool], most: int) -> int:
    """Remove at most `most` rows that meet a condition. Returns the number removed."""
    keys = list(table.primary_key.columns)
    key: Any = tuple_(*keys) if len(keys) > 1 else keys[0]
    if any(foreign.column.table is table for foreign in table.foreign_keys):
        # Rows that refer to each other can then be removed in any order.
        session.execute(update(table).where(condition).values(parent_id=None))
    result = session.execute(delete(table).where(key.in_(select(*keys).where(condition).limit(most))))
    return result.rowcount if isinstance(result, CursorResult) else 0


def drop_alerts_and_rules(session: Session, family_id: str) -> None:
    """Remove the alerts of a family and its own alert rules."""
    session.execute(delete(Alert).where(Alert.family_id == family_id))
    session.execute(delete(AlertRule).where(AlertRule.family_id == family_id))


def children(session: Session, checkpoint_id: str) -> Sequence[Checkpoint]:
    """The direct children of a checkpoint, oldest first."""
    statement = select(Checkpoint).where(Checkpoint.parent_id == checkpoint_id)
    return session.scalars(statement.order_by(Checkpoint.created_at, Checkpoint.id)).all()


def signatures_from(session: Session, checkpoint_id: str) -> list[str]:
    """Names of the signatures whose baseline is a checkpoint."""
    return list(session.scalars(select(Signature.name).where(Signature.baseline_id == checkpoint_id)))


def fitted_generation(session: Session, checkpoint_id: str) -> int | None:
    """The generation that a checkpoint's run fitted; None if it did not re-fit."""
    return session.scalar(select(Lineage.generation).where(Lineage.checkpoint_id == checkpoint_id).limit(1))


def drop(session: Session, table: type[Alert | Reading | Verdict], checkpoint_id: str) -> None:
    """Remove the rows of a checkpoint from a table."""
    session.execute(delete(table).where(table.checkpoint_id == checkpoint_id))


def drop_measurements(session: Session, checkpoint_id: str, metrics: Sequence[str], *, excluding: str) -> None:
    """Remove arrays of a checkpoint at all hook points except one."""
    session.execute(
        delete(Measurement).where(
            Measurement.checkpoint_id == checkpoint_id,
            Measurement.metric.in_(metrics),
            Measurement.hook_point != excluding,
        )
    )


def unpair(session: Session, checkpoint_id: str) -> None:
    """Mark a checkpoint's sources as not paired with any hook point of the parent."""
    for source in session.scalars(select(Source).where(Source.checkpoint_id == checkpoint_id)):
        source.stats = source.stats | {"paired_with": None}
    graphs = update(DependencyGraph).where(DependencyGraph.checkpoint_id == checkpoint_id)
    session.execute(graphs.values(rewired=None))


def update_previous_statuses(session: Session, checkpoint_id: str, parent_id: str) -> None:
    """Set the `previous_status` of a checkpoint's verdicts to the status at its parent."""
    above = aliased(Verdict)
    status = select(above.status).where(above.checkpoint_id == parent_id, above.feature == Verdict.feature)
    session.execute(
        update(Verdict)
        .where(Verdict.checkpoint_id == checkpoint_id)
        .values(previous_status=status.correlate(Verdict).scalar_subquery())
        .execution_options(synchronize_session=False)
    )


def readings(session: Session, family_id: str) -> Sequence[Reading]:
    """All readings of a family's signatures."""
    statement = select(Reading).join(Signature, Signature.id == Reading.signature_id)
    return session.scalars(statement.where(Signature.family_id == family_id)).all()


def unresolved_alerts(session: Session, checkpoint_id: str) -> Sequence[Alert]:
    """Unresolved alerts of a checkpoint."""
    return session.scalars(select(Alert).where(Alert.checkpoint_id == checkpoint_id, Alert.state != "resolved")).all()


def has_unresolved(session: Session, key: str) -> bool:
    """Whether there is an unresolved alert with this key."""
    return session.scalar(select(Alert.id).where(Alert.key == key, Alert.state != "resolved")) is not None


def unretire(session: Session, family_id: str, checkpoint_id: str) -> None:
    """Undo retirements by a checkpoint's re-fit. Features that another re-fit retired too stay retired from then on."""
    ended = or_(Lineage.new.is_(None), Lineage.new != Lineage.old)
    here = select(Lineage.old).where(Lineage.checkpoint_id == checkpoint_id, Lineage.old.is_not(None), ended)
    others = (
        select(func.min(Lineage.generation))
        .where(Lineage.family_id == family_id, Lineage.checkpoint_id != checkpoint_id, ended)
        .where(Lineage.old == Feature.number)
        .correlate(Feature)
    )
    session.execute(
        update(Feature)
        .where(Feature.family_id == family_id, Feature.number.in_(here))
        .values(retired_in=others.scalar_subquery())
        .execution_options(synchronize_session=False)
    )


def attribute(session: Session, family_id: str, born_in: str, to: str, numbers: Sequence[int] | None = None) -> None:
    """Attribute features introduced by one checkpoint to another one: all of them, or only `numbers`."""
    statement = update(Feature).where(Feature.family_id == family_id, Feature.born_in == born_in)
    if numbers is not None:
        statement = statement.where(one_of(Feature.number, values=numbers))
    session.execute(statement.values(born_in=to).execution_options(synchronize_session=False))


def judged_elsewhere(session: Session, checkpoint: Checkpoint, *, origins: Sequence[str]) -> dict[int, str]:
    """Feature number -> id of the oldest other checkpoint with a verdict, for features introduced by a checkpoint."""
    rows = session.execute(
        _elsewhere(checkpoint, Verdict.feature, Verdict.checkpoint_id)
        .join(Checkpoint, Checkpoint.id == Verdict.checkpoint_id)
        .where(Feature.origin.in_(origins))
        .order_by(Checkpoint.created_at.desc(), Checkpoint.id.desc())
    )
    return {row[0]: row[1] for row in rows}


def with_verdicts_of(session: Session, checkpoint: Checkpoint) -> Sequence[Checkpoint]:
    """Other checkpoints with verdicts on features that a checkpoint introduced."""
    ids = _elsewhere(checkpoint, Verdict.checkpoint_id)
    return session.scalars(select(Checkpoint).where(Checkpoint.id.in_(ids))).all()


def _elsewhere(checkpoint: Checkpoint, *columns: Any) -> Select[Any]:
    """Select the verdicts of other checkpoints on features that a checkpoint introduced."""
    return (
        select(*columns)
        .select_from(Verdict)
        .join(Feature, (Feature.family_id == Verdict.family_id) & (Feature.number == Verdict.feature))
        .where(Verdict.family_id == checkpoint.family_id, Verdict.checkpoint_id != checkpoint.id)
        .where(Feature.born_in == checkpoint.id)
    )


def drop_features(session: Session, checkpoint: Checkpoint) -> None:
    """Remove the features that a checkpoint introduced, with their verdicts everywhere."""
    born = select(Feature.number).where(Feature.family_id == checkpoint.family_id, Feature.born_in == checkpoint.id)
    for table in (Verdict, DependencyGraph):
        session.execute(delete(table).where(table.family_id == checkpoint.family_id, table.feature.in_(born)))
    session.execute(delete(Feature).where(Feature.family_id == checkpoint.family_id, Feature.born_in == checkpoint.id))
