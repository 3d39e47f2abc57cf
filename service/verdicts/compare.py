"""Any two checkpoints, compared in numpy from what is stored: no activations, no decoders, no worker."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from service.models import Checkpoint, Family, Verdict
from service.verdicts import queries
from service.verdicts.arrays import by_column
from service.verdicts.figures import columns_of, numbers_of
from service.verdicts.judge import GONE, Evidence, Floats, Status, judge, standard_error
from service.verdicts.policy import Policy


@dataclass(slots=True)
class Row:
    """A verdict that was computed on request, with the attributes of `service.models.Verdict`."""

    feature: int
    status: str
    previous_status: str | None
    change: float
    projection_ratio: float | None
    projection_ratio_lo: float | None
    projection_ratio_hi: float | None
    strength_ratio: float | None
    strength_ratio_lo: float | None
    strength_ratio_hi: float | None
    orthogonal_ratio: float | None
    q_value: float | None
    strength: float | None
    direction_cosine: float | None
    readability: float | None
    firing_rate: float
    firings: int
    minimum_detectable_ratio: float | None
    successors: list[Any]


def compare(
    session: Session,
    family: Family,
    checkpoint: Checkpoint,
    baseline: Checkpoint,
    *,
    emerged: Set[int] = frozenset(),
    comparison: int = 1,
) -> list[Row]:
    """Verdicts of a checkpoint against any judged one of its family, features in order of their numbers.

    Relocations and successions that took place between the two are those that were judged when they happened.
    emerged: features that the baseline is known not to have; comparison: as in `Evidence`.
    """
    now, then = _stored(session, checkpoint), _stored(session, baseline)
    parents = queries.parents(session, family.id)
    between = _path(parents, checkpoint, baseline)
    # One that was discovered later has no birth on the way, but may have a verdict that says so.
    appeared = {row.feature for row in queries.verdicts(session, between, [Status.EMERGED])}
    births = queries.born_in(session, family.id, between) | dict.fromkeys(appeared | emerged, "emerged")
    # Discovered one step after the baseline: that step measured them there, as the level 1 that they start from.
    follows = bool(between) and parents[between[-1]] == baseline.id
    found = set(queries.born_in(session, family.id, between[-1:])) if follows else set()
    # Where the baseline builds on this checkpoint, it goes on from the directions that features were relocated to here.
    evidence = _evidence(now, then, births, found, ahead=checkpoint.id not in between)
    evidence.comparison = comparison
    judgement = judge(evidence, Policy.model_validate(family.policy))
    numbers = np.array(now.numbers, dtype=np.int64)
    columns = columns_of(numbers, evidence, judgement, then.statuses)
    columns |= {
        "strength": numbers_of(by_column(now.strength[0], numbers)),
        "direction_cosine": [None] * len(numbers),
        "readability": numbers_of(by_column(now.readability, numbers)),
        "firing_rate": [now.figures[number][1] for number in now.numbers],
    }
    # Tens of thousands of rows: by place, not by name.
    rows = [Row(*values) for values in zip(*(columns[name] for name in Row.__slots__), strict=True)]
    happened = _happened(session, between)
    for row in rows if happened else ():
        wanted = _EVENT_OF.get(Status(row.status))
        event = happened.get((row.feature, wanted)) if wanted else None
        if event is not None:
            row.status, row.successors = event.status, event.successors
            # Its level went on along the new direction, so the ratio does not show it.
            row.change = max(row.change, event.change)
    return rows


def _evidence(now: "_Stored", then: "_Stored", births: dict[int, str], found: set[int], *, ahead: bool) -> Evidence:
    """What two checkpoints hold against each other, columns in the order of `now`.

    births: origin of the features that came between them; found: those that start from level 1 at the baseline; ahead:
    the baseline builds on the checkpoint.
    """
    numbers = np.array(now.numbers, dtype=np.int64)
    known = np.isin(numbers, then.numbers)
    born = np.array([births.get(number) == "emerged" for number in now.numbers]) & ~known
    there = np.array([then.statuses.get(number) not in GONE for number in now.numbers])
    shared = min(len(now.level), len(then.level))

    def of(stored: Floats) -> Floats:
        return by_column(stored, numbers)

    reference = of(then.reference[:shared])
    discovered = np.array([number in found for number in now.numbers]) & ~known
    reference[:, discovered] = 1.0

    level = of(now.level)
    if ahead:
        moved = np.array([now.statuses.get(number) == Status.RELOCATED for number in now.numbers])
        level = np.where(moved, of(now.reference), level)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # the judge leaves out what is no number
        projection = level[:shared] / reference
        strength = of(now.strength[:shared]) / of(then.strength[:shared])
        orthogonal = np.sqrt(np.maximum(strength**2 - projection**2, 0))
    # What is gone at the baseline is held against where it was last: its strength there is not at issue.
    z = np.where(known, np.where(there, of(_strength_z(then)), np.inf), np.where(discovered, np.inf, 0.0))
    return Evidence(
        projection=projection,
        strength_ratio=strength,
        orthogonal=orthogonal,
        firings=np.array([now.figures[number][0] for number in now.numbers], dtype=np.int64),
        documents=of(now.documents).astype(np.int64),
        readability=of(now.readability),
        readability_before=of(then.readability),
        baseline_z=z.astype(np.float32),
        there_before=there,
        born_here=born,
    )


_EVENT_OF = {
    Status.ABSENT: Status.REPLACED,
    Status.SUPPRESSED: Status.REPLACED,
    Status.PRESENT: Status.RELOCATED,
    Status.RELOCATED: Status.RELOCATED,
}
"""What the levels say of a feature -> what happened to it on the way, if it did. Levels of a relocated feature go on
with its new direction: it counts as present."""


def _happened(session: Session, between: Sequence[str]) -> dict[tuple[int, str], Verdict]:
    """(feature, status) -> its last relocation or succession on the way."""
    found = queries.verdicts(session, between, [Status.RELOCATED, Status.REPLACED])
    latest_last = sorted(found, key=lambda verdict: -between.index(verdict.checkpoint_id))
    return {(verdict.feature, verdict.status): verdict for verdict in latest_last}


def _strength_z(stored: "_Stored") -> Floats:
    """Strength^2 of each feature over its standard error: [m]."""
    square = stored.strength.astype(np.float64) ** 2
    return (square[0] / np.maximum(standard_error(square), 1e-9)).astype(np.float32)


@dataclass(frozen=True)
class _Stored:
    """Arrays are by feature number in the last dimension."""

    numbers: list[int]
    """ascending, of the features that the checkpoint's code has"""
    level: Floats
    reference: Floats
    strength: Floats
    readability: Floats
    documents: Floats
    statuses: dict[int, str]
    figures: dict[int, tuple[int, float]]
    """number -> (firings, firing rate)"""


def _stored(session: Session, checkpoint: Checkpoint) -> _Stored:
    standing = queries.standing(session, checkpoint.id)

    def array(metric: str) -> Floats:
        found = queries.measurement(session, checkpoint.id, metric)
        if found is None:
            raise LookupError(f"the checkpoint {checkpoint.name} has no measurement {metric}")
        return found

    return _Stored(
        numbers=[row[0] for row in standing],
        level=array("level"),
        reference=array("reference_level"),
        strength=array("strength"),
        readability=array("readability"),
        documents=array("documents"),
        statuses={row[0]: row[1] for row in standing},
        figures={row[0]: (row[2], row[3]) for row in standing},
    )


def _path(parents: dict[str, str | None], checkpoint: Checkpoint, baseline: Checkpoint) -> Sequence[str]:
    """Checkpoints after the two have parted from their common ancestor, on the side of `checkpoint`, latest first."""

    def ancestry(start: str) -> list[str]:
        chain: list[str] = []
        current: str | None = start
        while current is not None:
            chain.append(current)
            current = parents.get(current)
        return chain

    others = set(ancestry(baseline.id))
    return [one for one in ancestry(checkpoint.id) if one not in others]
