"""What the database holds of a checkpoint's verdicts and measurements, as arrays; kept in memory for whoever asks."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from service.kit.kept import Kept
from service.models import Checkpoint
from service.verdicts import queries
from service.verdicts.arrays import by_column
from service.verdicts.judge import PLACE, Floats, Status, standard_error
from service.verdicts.table import Table

MOST_BYTES = 384 * 1024 * 1024
"""Of a process. A checkpoint of 32,768 features takes 8 MB."""
_kept: Kept["Table | Measured"] = Kept(MOST_BYTES)


@dataclass(frozen=True)
class Measured:
    """Arrays are by feature number in the last dimension."""

    level: Floats
    referred: NDArray[np.int64]
    """numbers of the features whose reference is not their level"""
    reference: Floats
    """[K + 1, r] of those"""
    strength: Floats
    strength_z: Floats
    readability: Floats
    documents: Floats

    @property
    def nbytes(self) -> int:
        """What the arrays take in memory."""
        return sum(array.nbytes for array in vars(self).values())

    def references(self, numbers: NDArray[np.int64], rows: int) -> Floats:
        """Reference levels of any features: the first `rows` replicates, [rows, m]."""
        found = by_column(self.level[:rows], numbers)
        place = np.full(int(max(numbers.max(initial=0), self.referred.max(initial=0))) + 1, -1)
        place[numbers] = np.arange(len(numbers))
        here = place[self.referred] >= 0
        found[:, place[self.referred[here]]] = self.reference[:rows, here]
        return found


@dataclass(frozen=True)
class Stored:
    """A checkpoint: where its features stand, and what was measured of them."""

    standing: Table
    measured: Measured


def read(session: Session, checkpoint: Checkpoint) -> Stored:
    """A checkpoint as it is in the database now. LookupError where a measurement is missing."""
    return Stored(_standing(session, checkpoint), _measured(session, checkpoint))


def kept(session: Session, checkpoint: Checkpoint) -> Stored:
    """The same for sessions that only read, out of memory where it was read before."""
    measured = _kept.get((Measured, checkpoint.id, checkpoint.revision), lambda: _measured(session, checkpoint))
    assert isinstance(measured, Measured)
    return Stored(standing(session, checkpoint), measured)


def standing(session: Session, checkpoint: Checkpoint) -> Table:
    """The stored verdicts of a checkpoint, for sessions that only read; out of memory where they were read before.

    Everything that writes verdicts or measurements of a checkpoint counts its `revision` up in the same transaction. A
    session that writes must not leave here what may be rolled back.
    """
    found = _kept.get((Table, checkpoint.id, checkpoint.revision), lambda: _standing(session, checkpoint))
    assert isinstance(found, Table)
    return found


FLOATS = ("change", "projection_ratio", "projection_ratio_lo", "projection_ratio_hi", "q_value", "direction_cosine",
          "firing_rate")  # fmt: skip


def _standing(session: Session, checkpoint: Checkpoint) -> Table:
    rows = queries.standing(session, checkpoint.id, FLOATS)
    numbers, statuses, firings, *floats = zip(*rows, strict=True) if rows else ((),) * (3 + len(FLOATS))
    return Table(
        numbers=np.array(numbers, dtype=np.int64),
        statuses=np.array([PLACE[Status(status)] for status in statuses], dtype=np.int8),
        firings=np.array(firings, dtype=np.int64),
        floats={name: np.array(values, dtype=np.float64) for name, values in zip(FLOATS, floats, strict=True)},
    )


def _measured(session: Session, checkpoint: Checkpoint) -> Measured:
    def array(metric: str) -> Floats:
        found = queries.measurement(session, checkpoint.id, metric)
        if found is None:
            raise LookupError(f"the checkpoint {checkpoint.name} has no measurement {metric}")
        return found

    level, reference, strength = array("level"), array("reference_level"), array("strength")
    referred = np.flatnonzero(((level != reference) & ~(np.isnan(level) & np.isnan(reference))).any(0))
    square = strength.astype(np.float64) ** 2
    return Measured(
        level=level,
        referred=referred,
        reference=reference[:, referred],
        strength=strength,
        strength_z=(square[0] / np.maximum(standard_error(square), 1e-9)).astype(np.float32),
        readability=array("readability"),
        documents=array("documents"),
    )
