"""Compares any two checkpoints from stored measurements: no activations, no decoders, no worker."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from featurewatch.service.models import Checkpoint, Family
from featurewatch.service.verdicts import queries, stored
from featurewatch.service.verdicts.arrays import among, by_column
from featurewatch.service.verdicts.columns import judged_figures
from featurewatch.service.verdicts.judge import (
    Bools,
    Estimates,
    Evidence,
    Floats,
    estimates,
    estimates_of_ratios,
    judge,
)
from featurewatch.service.verdicts.policy import Policy
from featurewatch.service.verdicts.statuses import BY_CODE, GONE, Status
from featurewatch.service.verdicts.stored import Course, Event, Measured, Stored
from featurewatch.service.verdicts.table import Table


def compare(
    session: Session,
    family: Family,
    checkpoint: Checkpoint,
    baseline: Checkpoint,
    *,
    emerged: Set[int] = frozenset(),
    comparison: int = 1,
    keep: bool = False,
) -> Table:
    """Verdicts of a checkpoint against any judged checkpoint of its family.

    Relocations and successions between the two are taken from the checkpoints where they were judged.
    emerged: features that the baseline is known not to have. comparison: as in `Evidence`. keep: as in `stored.read`.
    """
    now, then = stored.read(session, checkpoint, keep=keep), stored.read(session, baseline, keep=keep)
    numbers = now.standing.numbers
    lineage = queries.lineage(session, family.id)
    # From the common ancestor (exclusive) to the checkpoint, latest first.
    others = {baseline.id, *queries.line(lineage, baseline)}
    between = [id_ for id_ in (checkpoint.id, *queries.line(lineage, checkpoint)) if id_ not in others]
    courses = [stored.course(session, family.id, id_, lineage[id_][1], keep=keep) for id_ in between]
    # A feature that was discovered later has no birth on the path, but may have a verdict that it emerged there.
    births = {number: origin for course in courses for number, origin in course.born.items()}
    births |= dict.fromkeys(frozenset(emerged).union(*(course.emerged for course in courses)), "emerged")
    # Features discovered one step after the baseline were measured at the baseline, as the level 1 they start from.
    follows = bool(between) and lineage[between[-1]][0] == baseline.id
    discovered = set(courses[-1].born) if follows else set()
    # A baseline that descends from this checkpoint continues with the directions that features were relocated to here.
    previous = _at_baseline(numbers, then.standing)
    evidence = _evidence(now, then, previous, births, discovered, ahead=checkpoint.id not in between)
    evidence.comparison = comparison
    judgement = judge(evidence, Policy.model_validate(family.policy))
    statuses, change = judgement.codes.copy(), judgement.change.astype(np.float64)
    successors = {}
    happened = _happened(courses)
    for place, event in zip(
        now.standing.find([number for number, _ in happened]).tolist(), happened.values(), strict=True
    ):
        if place >= 0 and _EVENT_OF.get(BY_CODE[int(judgement.codes[place])]) == event.status:
            statuses[place], successors[place] = event.status.code, event.successors
            # Its level continued along the new direction, so the ratio does not show the change.
            change[place] = max(change[place], event.change)
    figures = judged_figures(evidence, judgement) | {
        "change": change,
        "strength": by_column(now.measured.strength[0], numbers),
        "direction_cosine": np.full(len(numbers), np.nan),
        "readability": by_column(now.measured.readability, numbers),
        "firing_rate": now.standing.figures["firing_rate"],
        "documents": now.standing.figures["documents"],
    }
    for name, values in figures.items():
        if values.dtype == np.float32:
            figures[name] = values.astype(np.float64)
    return Table(numbers, statuses, figures, previous, successors)


def _at_baseline(numbers: NDArray[np.int64], then: Table) -> NDArray[np.int8]:
    """[m] codes of the features' statuses at the baseline; -1: it does not have the feature."""
    codes = np.full(int(max(numbers.max(initial=0), then.numbers.max(initial=0))) + 1, -1, dtype=np.int8)
    codes[then.numbers] = then.statuses
    return codes[numbers]


def _evidence(
    now: Stored, then: Stored, previous: NDArray[np.int8], births: dict[int, str], new: set[int], *, ahead: bool
) -> Evidence:
    """The evidence for comparing two checkpoints, columns in the order of `now`.

    births: origins of the features that appeared between them; new: features that start from level 1 at the baseline;
    ahead: whether the baseline descends from the checkpoint.
    """
    numbers, measured = now.standing.numbers, now.measured
    known = previous >= 0
    emerged = [number for number, origin in births.items() if origin == "emerged"]
    born = among(numbers, emerged) & ~known
    there = np.logical_and.reduce([previous != status.code for status in GONE])

    def of(stored: Floats) -> Floats:
        return by_column(stored, numbers)

    discovered = among(numbers, new) & ~known
    moved = ahead & (now.standing.statuses == Status.RELOCATED.code)
    # Features that are gone at the baseline are compared with where they last were: their strength there is irrelevant.
    z = np.where(known, np.where(there, of(then.measured.strength_z), np.inf), np.where(discovered, np.inf, 0.0))
    pair = _Pair(measured, then.measured, numbers, moved, discovered)
    projection, strength = estimated = pair.estimates()
    return _Evidence(
        projection=projection.value[None],
        strength_ratio=strength.value[None],
        orthogonal=_orthogonal(projection.value[None], strength.value[None]),
        firings=now.standing.figures["firings"],
        documents=now.standing.figures["documents"].astype(np.int64),
        readability=of(measured.readability),
        readability_before=of(then.measured.readability),
        baseline_z=z.astype(np.float32),
        there_before=there,
        born_here=born,
        pair=pair,
        estimated=estimated,
    )


@dataclass(frozen=True)
class _Pair:
    """Two checkpoints and the compared features, [m] each, in the order of their numbers."""

    now: Measured
    then: Measured
    numbers: NDArray[np.int64]
    moved: Bools
    """compared by their reference level now, too"""
    discovered: Bools
    """start from level 1 at the baseline"""

    @cached_property
    def apart(self) -> Bools:
        """[m] features that are not compared by their levels alone: few."""
        return self.moved | self.discovered | self.then.apart(self.numbers)

    def estimates(self) -> tuple[Estimates, Estimates]:
        """Projection and strength ratio of all features."""
        projection = estimates_of_ratios(self.now.level, self.then.level, self.numbers)
        few = np.flatnonzero(self.apart)
        for every, apart in zip(projection[:3], estimates(self.of_few(few))[:3], strict=True):
            every[few] = apart
        return projection, estimates_of_ratios(self.now.strength, self.then.strength, self.numbers)

    def ratios(self, columns: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Replicates of projection and strength ratio of some features, [K + 1, j] each."""
        rows, numbers = self._rows, self.numbers[columns]
        level, before, strength, strength_before = (
            by_column(array[:rows], numbers)
            for array in (self.now.level, self.then.level, self.now.strength, self.then.strength)
        )
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # the judge ignores non-finite ratios
            projection, strength_ratio = level / before, strength / strength_before
        few = np.flatnonzero(self.apart[columns])
        projection[:, few] = self.of_few(columns[few])
        return projection, strength_ratio

    def of_few(self, columns: NDArray[np.int64]) -> Floats:
        """Replicates of the projection ratio of features in `apart`, [K + 1, j]."""
        rows, numbers = self._rows, self.numbers[columns]
        reference = self.then.references(numbers, rows)
        reference[:, self.discovered[columns]] = 1.0
        level = by_column(self.now.level[:rows], numbers)
        own = np.where(self.moved[columns], self.now.references(numbers, rows), level)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return (own / reference).astype(np.float32, copy=False)

    @property
    def _rows(self) -> int:
        """Number of replicates that both have."""
        return min(len(self.now.level), len(self.then.level))


@dataclass
class _Evidence(Evidence):
    """Has only the estimates; replicates are computed for the features that need them."""

    pair: _Pair | None = None
    estimated: tuple[Estimates, Estimates] | None = None

    def estimates(self) -> tuple[Estimates, Estimates]:
        assert self.estimated is not None
        return self.estimated

    def turned(self, columns: NDArray[np.int64]) -> Floats:
        assert self.pair is not None
        return _orthogonal(*self.pair.ratios(columns))


def _orthogonal(projection: Floats, strength: Floats) -> Floats:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.sqrt(np.maximum(strength**2 - projection**2, 0))


_EVENT_OF = {
    Status.ABSENT: Status.REPLACED,
    Status.SUPPRESSED: Status.REPLACED,
    Status.PRESENT: Status.RELOCATED,
    Status.RELOCATED: Status.RELOCATED,
}
"""Status by the levels -> the event on the path that explains it. Levels of a relocated feature continue along its new
direction, so by them it is present."""


def _happened(courses: Sequence[Course]) -> dict[tuple[int, Status], Event]:
    """(feature, status) -> its last relocation or succession on the path. courses: latest first."""
    events: dict[tuple[int, Status], Event] = {}
    for course in reversed(courses):
        events |= course.events
    return events
