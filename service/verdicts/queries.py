"""SQL of verdicts and measurements."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import LargeBinary, bindparam, delete, func, insert, select, update
from sqlalchemy.orm import Session

from featurewatch.service.kit.bulk import insert_columns
from featurewatch.service.kit.listed import one_of
from featurewatch.service.models import (
    Checkpoint,
    Code,
    DependencyGraph,
    Family,
    Feature,
    Lineage,
    Measurement,
    Source,
    Standing,
    Verdict,
)

ALL_HOOKS = "*"


def checkpoint(session: Session, checkpoint_id: str) -> Checkpoint:
    """A checkpoint that is known to exist."""
    return session.get_one(Checkpoint, checkpoint_id)


def family(session: Session, family_id: str) -> Family:
    """A family that is known to exist."""
    return session.get_one(Family, family_id)


def code(session: Session, checkpoint_id: str) -> Code | None:
    """The code of a checkpoint."""
    return session.get(Code, checkpoint_id)


def sources(session: Session, checkpoint_id: str) -> dict[str, Source]:
    """Hook point -> source."""
    rows = session.scalars(select(Source).where(Source.checkpoint_id == checkpoint_id))
    return {row.hook_point: row for row in rows}


def sources_of_family(session: Session, family_id: str) -> dict[str, dict[str, tuple[int, dict[str, Any]]]]:
    """Checkpoint id -> hook point -> (width, stats), for a whole family."""
    columns = (Source.checkpoint_id, Source.hook_point, Source.d_model, Source.stats)
    statement = select(*columns).join(Checkpoint, Checkpoint.id == Source.checkpoint_id)
    sources: dict[str, dict[str, tuple[int, dict[str, Any]]]] = {}
    for checkpoint_id, hook, width, stats in session.execute(statement.where(Checkpoint.family_id == family_id)):
        sources.setdefault(checkpoint_id, {})[hook] = width, stats
    return sources


def lineage(session: Session, family_id: str) -> dict[str, tuple[str | None, int]]:
    """Checkpoint id -> (id of its parent, its revision), for a whole family."""
    rows = session.connection().execute(_LINEAGE, {"family": family_id})
    return {row[0]: (row[1], row[2]) for row in rows}


def revisions(session: Session, checkpoint_ids: Sequence[str]) -> dict[str, int]:
    """Checkpoint id -> revision, for checkpoints of any families."""
    rows = session.execute(select(Checkpoint.id, Checkpoint.revision).where(Checkpoint.id.in_(checkpoint_ids)))
    return {row[0]: row[1] for row in rows}


# Built once: every comparison runs it.
_LINEAGE = select(Checkpoint.id, Checkpoint.parent_id, Checkpoint.revision).where(
    Checkpoint.family_id == bindparam("family")
)


def ancestors(session: Session, checkpoint: Checkpoint) -> list[str]:
    """Ids of a checkpoint's ancestors, its parent first."""
    return line(lineage(session, checkpoint.family_id), checkpoint)


def line(lineage: Mapping[str, tuple[str | None, int]], checkpoint: Checkpoint) -> list[str]:
    """The same from the family's `lineage`."""
    ids = dict[str, None]()
    current = checkpoint.parent_id
    while current is not None and current not in ids:
        ids[current] = None
        current, _ = lineage.get(current, (None, 0))
    return list(ids)


def fits(session: Session, checkpoint_ids: Sequence[str]) -> list[tuple[int, bool, dict[str, Any]]]:
    """(generation, whether fitted, quality) of the checkpoints that have a code, in the given order."""
    columns = (Code.checkpoint_id, Code.generation, Code.extra, Checkpoint.quality)
    statement = select(*columns).join(Checkpoint, Checkpoint.id == Code.checkpoint_id)
    rows = session.execute(statement.where(one_of(Code.checkpoint_id, values=checkpoint_ids)))
    known = {row[0]: (row[1], bool(row[2].get("fitted")), row[3] or {}) for row in rows}
    return [known[id_] for id_ in checkpoint_ids if id_ in known]


def statuses(session: Session, checkpoint_id: str, numbers: Sequence[int] | None = None) -> dict[int, str]:
    """Feature number -> status in a checkpoint, for some features or all."""
    statement = select(Verdict.feature, Verdict.status).where(Verdict.checkpoint_id == checkpoint_id)
    if numbers is not None:
        statement = statement.where(one_of(Verdict.feature, values=numbers))
    return {row[0]: row[1] for row in session.execute(statement)}


def places(session: Session, checkpoint_id: str, numbers: Sequence[int]) -> dict[int, str]:
    """Feature number -> places in a checkpoint, of the features that have them."""
    statement = select(Verdict.feature, Verdict.places).where(
        Verdict.checkpoint_id == checkpoint_id, Verdict.places.is_not(None), one_of(Verdict.feature, values=numbers)
    )
    return {row[0]: str(row[1]) for row in session.execute(statement)}


def events(session: Session, checkpoint_id: str, statuses: Sequence[str]) -> Sequence[Any]:
    """(number, status, change, successors) of the features with one of these statuses in a checkpoint."""
    columns = (Verdict.feature, Verdict.status, Verdict.change, Verdict.successors)
    statement = select(*columns).where(Verdict.checkpoint_id == checkpoint_id, Verdict.status.in_(statuses))
    return session.execute(statement).all()


def standing(session: Session, checkpoint_id: str, figures: Sequence[str]) -> Sequence[Any]:
    """(number, status, places, each of the figures) of a checkpoint's features, ascending."""
    columns = (Verdict.feature, Verdict.status, Verdict.places, *(getattr(Verdict, name) for name in figures))
    statement = select(*columns).where(Verdict.checkpoint_id == checkpoint_id).order_by(Verdict.feature)
    # Tens of thousands of rows of plain values: the ORM would process each of them.
    return session.connection().execute(statement).all()


def packed(session: Session, checkpoint_id: str, layout: str) -> bytes | None:
    """The packed verdicts of a checkpoint, or None if there are none of this layout."""
    return session.connection().execute(_PACKED, {"checkpoint": checkpoint_id, "layout": layout}).scalar()


def put_packed(session: Session, checkpoint_id: str, layout: str, data: bytes) -> None:
    """Store the packed verdicts of a checkpoint that has none."""
    session.execute(insert(Standing), [{"checkpoint_id": checkpoint_id, "layout": layout, "data": data}])


_PACKED = select(Standing.data).where(
    Standing.checkpoint_id == bindparam("checkpoint"), Standing.layout == bindparam("layout")
)


def born_in(session: Session, family_id: str, checkpoint_id: str) -> dict[int, str]:
    """Feature number -> origin, of the features that a checkpoint's run introduced."""
    statement = select(Feature.number, Feature.origin).where(
        Feature.family_id == family_id, Feature.born_in == checkpoint_id
    )
    return {row[0]: row[1] for row in session.execute(statement)}


def measurement(
    session: Session, checkpoint_id: str, metric: str, hook_point: str = ALL_HOOKS
) -> NDArray[np.float32] | None:
    """One stored array, or None."""
    row = session.get(Measurement, (checkpoint_id, hook_point, metric))
    return None if row is None else np.frombuffer(row.data, dtype="<f4").reshape(row.shape)


def at_hooks(
    session: Session, family_id: str, number: int, metrics: Sequence[str]
) -> Sequence[tuple[str, str, str, bytes]]:
    """(checkpoint id, hook point, metric, float32 as bytes) of one feature at all hook points of a family.

    The database returns only four bytes of each array; none if the array ends before the feature.
    """
    value = func.substr(Measurement.data, 4 * number + 1, 4, type_=LargeBinary)
    statement = (
        select(Measurement.checkpoint_id, Measurement.hook_point, Measurement.metric, value)
        .join(Checkpoint, Checkpoint.id == Measurement.checkpoint_id)
        .where(Checkpoint.family_id == family_id, Measurement.hook_point != ALL_HOOKS, Measurement.metric.in_(metrics))
    )
    return [(row[0], row[1], row[2], bytes(row[3])) for row in session.execute(statement)]


def judged(session: Session, family_id: str) -> Sequence[Checkpoint]:
    """The judged checkpoints of a family, parents before their children."""
    statement = select(Checkpoint).where(Checkpoint.family_id == family_id, Checkpoint.state == "judged")
    return session.scalars(statement.order_by(Checkpoint.created_at, Checkpoint.id)).all()


def clear(session: Session, checkpoint_id: str) -> None:
    """Remove what an earlier run wrote about a checkpoint."""
    for table in (Verdict, Standing, Measurement, Source, Code, Lineage, DependencyGraph):
        session.execute(delete(table).where(table.checkpoint_id == checkpoint_id))


def revise(session: Session, checkpoint: Checkpoint) -> None:
    """Announce that this transaction writes verdicts or measurements of a checkpoint."""
    checkpoint.revision = Checkpoint.revision + 1
    session.flush()
    session.execute(delete(Standing).where(Standing.checkpoint_id == checkpoint.id))


def add(session: Session, table: type[Feature | Lineage], rows: list[dict[str, Any]]) -> None:
    """Insert rows."""
    if rows:
        session.execute(insert(table), rows)


def retire(session: Session, family_id: str, numbers: Sequence[int], generation: int) -> None:
    """Mark features as retired from a generation on. Retired features keep their generation."""
    living = (Feature.family_id == family_id, Feature.retired_in.is_(None), one_of(Feature.number, values=numbers))
    session.execute(update(Feature).where(*living).values(retired_in=generation))


def add_verdicts(session: Session, columns: Mapping[str, Sequence[Any]]) -> None:
    """Insert verdicts of a checkpoint, given as columns."""
    session.flush()
    insert_columns(session, Verdict, columns)


def remove_verdicts(session: Session, checkpoint_id: str, numbers: Sequence[int]) -> None:
    """Remove the verdicts of a few features in a checkpoint."""
    few = (Verdict.checkpoint_id == checkpoint_id, one_of(Verdict.feature, values=numbers))
    session.execute(delete(Verdict).where(*few))


def put_columns(
    session: Session,
    checkpoint_id: str,
    metric: str,
    numbers: NDArray[np.int64],
    values: NDArray[np.float32],
    hook_point: str = ALL_HOOKS,
) -> None:
    """Set a few features' values, [j] or [K + 1, j], in a stored array, which grows if necessary.

    Does nothing if the checkpoint has no such array.
    """
    row = session.get(Measurement, (checkpoint_id, hook_point, metric))
    if row is None:
        return
    stored = np.frombuffer(row.data, dtype="<f4").reshape(row.shape)
    length = max(stored.shape[-1], int(numbers.max()) + 1)
    grown = np.full((*stored.shape[:-1], length), np.nan, dtype="<f4")
    grown[..., : stored.shape[-1]] = stored
    # A family's documents have the same folds everywhere; the number of folds differs only if there are few documents.
    if stored.ndim == 1:
        grown[numbers] = values
    else:
        shared = min(len(stored), len(values))
        grown[:shared, numbers] = values[:shared]
    row.shape, row.data = list(grown.shape), grown.tobytes()


def add_measurement(
    session: Session, checkpoint_id: str, metric: str, values: NDArray[np.float32], hook_point: str = ALL_HOOKS
) -> None:
    """Insert one array."""
    data = np.ascontiguousarray(values, dtype="<f4")
    session.add(
        Measurement(
            checkpoint_id=checkpoint_id, hook_point=hook_point, metric=metric, shape=list(data.shape),
            data=data.tobytes(),
        )
    )  # fmt: skip
