"""A checkpoint's stored verdicts and measurements as arrays, with an in-memory cache."""

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from featurewatch.service.kit.cache import SizedCache
from featurewatch.service.models import Checkpoint
from featurewatch.service.verdicts import queries
from featurewatch.service.verdicts.arrays import by_column
from featurewatch.service.verdicts.figures import FIGURES
from featurewatch.service.verdicts.judge import Bools, Floats, standard_error
from featurewatch.service.verdicts.statuses import BY_CODE, Places, Status
from featurewatch.service.verdicts.table import Table


@dataclass(frozen=True)
class Measured:
    """Measurements of a checkpoint. The last dimension is the feature number."""

    level: Floats
    reference: Floats
    """[K + 1, r] for the features whose reference is not their level"""
    column: NDArray[np.int32]
    """[l] column of `reference`; -1: the reference is the level"""
    strength: Floats
    strength_z: Floats
    readability: Floats

    @property
    def nbytes(self) -> int:
        """Memory use of the arrays."""
        return sum(array.nbytes for array in vars(self).values())

    def apart(self, numbers: NDArray[np.int64]) -> Bools:
        """[m] whether each feature has a reference that is not its level."""
        apart, known = np.zeros(len(numbers), dtype=bool), numbers < len(self.column)
        apart[known] = self.column[numbers[known]] >= 0
        return apart

    def references(self, numbers: NDArray[np.int64], rows: int) -> Floats:
        """Reference levels of features, the first `rows` replicates: [rows, m]."""
        references = by_column(self.level[:rows], numbers)
        known = np.flatnonzero(numbers < len(self.column))
        column = self.column[numbers[known]]
        references[:, known[column >= 0]] = self.reference[:rows, column[column >= 0]]
        return references


@dataclass(frozen=True)
class Stored:
    """The stored verdicts and measurements of a checkpoint."""

    standing: Table
    measured: Measured


class Event(NamedTuple):
    """A change of a feature in a checkpoint."""

    feature: int
    status: Status
    change: float
    successors: list[Any]


@dataclass(frozen=True)
class Course:
    """Changes in a checkpoint against its parent."""

    born: dict[int, str]
    """number -> origin, of the features that its run introduced"""
    emerged: list[int]
    events: dict[tuple[int, Status], Event]
    """(feature, status) -> a relocation or succession"""

    @property
    def nbytes(self) -> int:
        """Approximate memory use."""
        return 100 * len(self.born) + 400 * len(self.events)


# A checkpoint of 32,768 features takes 1.6 MB, 5.9 MB and almost nothing: room for some sixty.
_STANDING: SizedCache[Table] = SizedCache(96 * 2**20)
_MEASURED: SizedCache[Measured] = SizedCache(360 * 2**20)
_COURSES: SizedCache[Course] = SizedCache(16 * 2**20)


def read(session: Session, checkpoint: Checkpoint, *, keep: bool) -> Stored:
    """The stored verdicts and measurements of a checkpoint. LookupError if a measurement is missing.

    keep: use the cache. Only for read-only sessions: a writing session could cache what is rolled back later. Whatever
    writes verdicts or measurements of a checkpoint increments its `revision` in the same transaction.
    """
    key = (checkpoint.id, checkpoint.revision)
    if not keep:
        return Stored(_standing(session, checkpoint.id), _measured(session, checkpoint))
    measured = _MEASURED.get(key, lambda: _measured(session, checkpoint))
    return Stored(standing(session, checkpoint), measured)


def standing(session: Session, checkpoint: Checkpoint) -> Table:
    """The stored verdicts of a checkpoint, with the packed figures only. Cached as in `read`."""
    return _STANDING.get((checkpoint.id, checkpoint.revision), lambda: _standing(session, checkpoint.id))


def statuses(session: Session, checkpoint_id: str) -> dict[int, str]:
    """Feature number -> status in a checkpoint, for all its features."""
    table = _standing(session, checkpoint_id)
    words = (BY_CODE[code].value for code in table.statuses.tolist())
    return dict(zip(table.numbers.tolist(), words, strict=True))


def course(session: Session, family_id: str, checkpoint_id: str, revision: int, *, keep: bool) -> Course:
    """Changes in a checkpoint against its parent. keep: as in `read`."""
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
    [("number", "<i8"), ("status", "i1"), ("places", "i1")]
    + [(column, kind) for kind_of in ("i", "f") for column, kind in _TYPES.items() if kind[1] == kind_of]
    + [("documents", "<f4")]
)
"""One feature of a packed table."""
LAYOUT = hashlib.sha256(repr(RECORD.descr).encode()).hexdigest()[:16]
"""Names the record's fields and their types. Tables of another layout are not read, but made from the rows."""


def pack(session: Session, checkpoint_id: str) -> None:
    """Pack the verdicts of a checkpoint, after all of them were written."""
    session.flush()
    table = _from_rows(session, checkpoint_id)
    records = np.empty(len(table.numbers), dtype=RECORD)
    columns = {"number": table.numbers, "status": table.statuses, "places": table.places, **table.figures}
    for name, values in columns.items():
        records[name] = values
    queries.put_packed(session, checkpoint_id, LAYOUT, records.tobytes())


def _standing(session: Session, checkpoint_id: str) -> Table:
    data = queries.packed(session, checkpoint_id, LAYOUT)
    if data is None:
        return _from_rows(session, checkpoint_id)
    records = np.frombuffer(data, dtype=RECORD)
    columns = {name: np.ascontiguousarray(records[name]) for name in RECORD.names or ()}
    return Table(columns.pop("number"), columns.pop("status"), places=columns.pop("places"), figures=columns)


def _from_rows(session: Session, checkpoint_id: str) -> Table:
    rows = queries.standing(session, checkpoint_id, PACKED_COLUMNS)
    ids, words, places, *columns = zip(*rows, strict=True) if rows else ((),) * (3 + len(PACKED_COLUMNS))
    numbers = np.array(ids, dtype=np.int64)
    figures: dict[str, NDArray[Any]] = {
        name: np.array(values, dtype=_TYPES[name]) for name, values in zip(PACKED_COLUMNS, columns, strict=True)
    }
    documents = queries.measurement(session, checkpoint_id, "documents")
    missing = np.full(len(numbers), np.nan, dtype=np.float32)
    return Table(
        numbers=numbers,
        statuses=np.array([Status(word).code for word in words], dtype=np.int8),
        places=np.array([Places(word).code if word else -1 for word in places], dtype=np.int8),
        figures=figures | {"documents": missing if documents is None else by_column(documents, numbers)},
    )


def _measured(session: Session, checkpoint: Checkpoint) -> Measured:
    def array(metric: str) -> Floats:
        values = queries.measurement(session, checkpoint.id, metric)
        if values is None:
            raise LookupError(f"the checkpoint {checkpoint.name} has no measurement {metric}")
        return values

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
