"""What the database holds of a checkpoint's verdicts and measurements, as arrays; kept in memory for whoever asks."""

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from featurewatch.service.kit.kept import Kept
from featurewatch.service.models import Checkpoint
from featurewatch.service.verdicts import queries
from featurewatch.service.verdicts.arrays import by_column
from featurewatch.service.verdicts.figures import FIGURES
from featurewatch.service.verdicts.judge import Bools, Floats, standard_error
from featurewatch.service.verdicts.statuses import BY_CODE, Status
from featurewatch.service.verdicts.table import Table


@dataclass(frozen=True)
class Measured:
    """Arrays are by feature number in the last dimension."""

    level: Floats
    reference: Floats
    """[K + 1, r] of the features whose reference is not their level"""
    column: NDArray[np.int32]
    """[l] of `reference`, -1: it is the level"""
    strength: Floats
    strength_z: Floats
    readability: Floats

    @property
    def nbytes(self) -> int:
        """What the arrays take in memory."""
        return sum(array.nbytes for array in vars(self).values())

    def apart(self, numbers: NDArray[np.int64]) -> Bools:
        """[m] which of any features have a reference that is not their level."""
        found, here = np.zeros(len(numbers), dtype=bool), numbers < len(self.column)
        found[here] = self.column[numbers[here]] >= 0
        return found

    def references(self, numbers: NDArray[np.int64], rows: int) -> Floats:
        """Reference levels of any features: the first `rows` replicates, [rows, m]."""
        found = by_column(self.level[:rows], numbers)
        here = np.flatnonzero(numbers < len(self.column))
        column = self.column[numbers[here]]
        found[:, here[column >= 0]] = self.reference[:rows, column[column >= 0]]
        return found


@dataclass(frozen=True)
class Stored:
    """A checkpoint: where its features stand, and what was measured of them."""

    standing: Table
    measured: Measured


class Event(NamedTuple):
    """What happened to a feature in a checkpoint."""

    feature: int
    status: Status
    change: float
    successors: list[Any]


@dataclass(frozen=True)
class Course:
    """What happened in a checkpoint, against its parent."""

    born: dict[int, str]
    """number -> origin, of the features that its run gave an id"""
    emerged: list[int]
    events: dict[tuple[int, Status], Event]
    """(feature, status) -> a relocation or succession"""

    @property
    def nbytes(self) -> int:
        """About what it takes in memory."""
        return 100 * len(self.born) + 400 * len(self.events)


# Of a checkpoint of 32,768 features 1.6 MB, 5.9 MB and next to nothing: some sixty of them.
_STANDING: Kept[Table] = Kept(96 * 2**20)
_MEASURED: Kept[Measured] = Kept(360 * 2**20)
_COURSES: Kept[Course] = Kept(16 * 2**20)


def read(session: Session, checkpoint: Checkpoint, *, keep: bool) -> Stored:
    """What the database holds of a checkpoint. LookupError where a measurement is missing.

    keep: take it out of memory where it was read before, and leave it there. For sessions that only read: one that
    writes must not leave what may be rolled back. All that writes verdicts or measurements of a checkpoint counts its
    `revision` up in the same transaction.
    """
    key = (checkpoint.id, checkpoint.revision)
    if not keep:
        return Stored(_standing(session, checkpoint.id), _measured(session, checkpoint))
    measured = _MEASURED.get(key, lambda: _measured(session, checkpoint))
    return Stored(standing(session, checkpoint), measured)


def standing(session: Session, checkpoint: Checkpoint) -> Table:
    """The stored verdicts of a checkpoint, those columns alone that lists are chosen by; kept as in `read`."""
    return _STANDING.get((checkpoint.id, checkpoint.revision), lambda: _standing(session, checkpoint.id))


def statuses(session: Session, checkpoint_id: str) -> dict[int, str]:
    """Feature number -> status in a checkpoint, of all its features."""
    table = _standing(session, checkpoint_id)
    words = (BY_CODE[code].value for code in table.statuses.tolist())
    return dict(zip(table.numbers.tolist(), words, strict=True))


def course(session: Session, family_id: str, checkpoint_id: str, revision: int, *, keep: bool) -> Course:
    """What happened in a checkpoint."""
    if not keep:
        return _course(session, family_id, checkpoint_id)
    return _COURSES.get((checkpoint_id, revision), lambda: _course(session, family_id, checkpoint_id))


def _course(session: Session, family_id: str, checkpoint_id: str) -> Course:
    rows = queries.events(session, checkpoint_id, [Status.EMERGED, Status.RELOCATED, Status.REPLACED])
    events = [Event(number, Status(status), change, successors) for number, status, change, successors in rows]
    return Course(
        born=queries.born_in(session, family_id, checkpoint_id),
        emerged=[event.feature for event in events if event.status == Status.EMERGED],
        events={(event.feature, event.status): event for event in events if event.status != Status.EMERGED},
    )


PACKED = [figure for figure in FIGURES if figure.packed]
PACKED_COLUMNS = [column for figure in PACKED for column in figure.columns]
_TYPES = {column: str(figure.packed) for figure in PACKED for column in figure.columns}
# Integers come first, as they always have: the order of the fields is a part of the layout.
RECORD = np.dtype(
    [("number", "<i8"), ("status", "i1")]
    + [(column, kind) for kind_of in ("i", "f") for column, kind in _TYPES.items() if kind[1] == kind_of]
    + [("documents", "<f4")]
)
"""One feature of a packed table."""
LAYOUT = hashlib.sha256(repr(RECORD.descr).encode()).hexdigest()[:16]
"""Names the record's fields and their types. Tables of another layout are not read, but made from the rows."""


def pack(session: Session, checkpoint_id: str) -> None:
    """Keep the verdicts of a checkpoint, all of which are written, as columns."""
    session.flush()
    table = _from_rows(session, checkpoint_id)
    records = np.empty(len(table.numbers), dtype=RECORD)
    columns = {"number": table.numbers, "status": table.statuses, **table.figures}
    for name, values in columns.items():
        records[name] = values
    queries.put_packed(session, checkpoint_id, LAYOUT, records.tobytes())


def _standing(session: Session, checkpoint_id: str) -> Table:
    data = queries.packed(session, checkpoint_id, LAYOUT)
    if data is None:
        return _from_rows(session, checkpoint_id)
    records = np.frombuffer(data, dtype=RECORD)
    columns = {name: np.ascontiguousarray(records[name]) for name in RECORD.names or ()}
    return Table(columns.pop("number"), columns.pop("status"), columns)


def _from_rows(session: Session, checkpoint_id: str) -> Table:
    rows = queries.standing(session, checkpoint_id, PACKED_COLUMNS)
    ids, words, *columns = zip(*rows, strict=True) if rows else ((),) * (2 + len(PACKED_COLUMNS))
    numbers = np.array(ids, dtype=np.int64)
    figures: dict[str, NDArray[Any]] = {
        name: np.array(values, dtype=_TYPES[name]) for name, values in zip(PACKED_COLUMNS, columns, strict=True)
    }
    documents = queries.measurement(session, checkpoint_id, "documents")
    missing = np.full(len(numbers), np.nan, dtype=np.float32)
    return Table(
        numbers=numbers,
        statuses=np.array([Status(word).code for word in words], dtype=np.int8),
        figures=figures | {"documents": missing if documents is None else by_column(documents, numbers)},
    )


def _measured(session: Session, checkpoint: Checkpoint) -> Measured:
    def array(metric: str) -> Floats:
        found = queries.measurement(session, checkpoint.id, metric)
        if found is None:
            raise LookupError(f"the checkpoint {checkpoint.name} has no measurement {metric}")
        return found

    level, reference, strength = array("level"), array("reference_level"), array("strength")
    other = np.flatnonzero(((level != reference) & ~(np.isnan(level) & np.isnan(reference))).any(0))
    column = np.full(level.shape[-1], -1, dtype=np.int32)
    column[other] = np.arange(len(other))
    square = strength.astype(np.float64) ** 2
    return Measured(
        level=level,
        reference=reference[:, other],
        column=column,
        strength=strength,
        strength_z=(square[0] / np.maximum(standard_error(square), 1e-9)).astype(np.float32),
        readability=array("readability"),
    )
