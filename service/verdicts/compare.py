"""Any two checkpoints, compared in numpy from what is stored: no activations, no decoders, no worker."""

from collections.abc import Callable, Sequence, Set

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from service.models import Checkpoint, Family
from service.verdicts import queries, stored
from service.verdicts.arrays import by_column
from service.verdicts.figures import floats_of
from service.verdicts.judge import GONE, PLACE, STATUSES, Evidence, Floats, Status, judge
from service.verdicts.policy import Policy
from service.verdicts.stored import Stored
from service.verdicts.table import Row, Table


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
    return compared(session, family, checkpoint, baseline, emerged=emerged, comparison=comparison).rows()


def compared(
    session: Session,
    family: Family,
    checkpoint: Checkpoint,
    baseline: Checkpoint,
    *,
    emerged: Set[int] = frozenset(),
    comparison: int = 1,
    read: Callable[[Session, Checkpoint], Stored] = stored.read,
) -> Table:
    """The same as columns. read: where the two are taken from."""
    now, then = read(session, checkpoint), read(session, baseline)
    numbers = now.standing.numbers
    parents = queries.parents(session, family.id)
    between = _path(parents, checkpoint, baseline)
    # One that was discovered later has no birth on the way, but may have a verdict that says so.
    appeared = {event.feature for event in queries.events(session, between, [Status.EMERGED])}
    births = queries.born_in(session, family.id, between) | dict.fromkeys(appeared | emerged, "emerged")
    # Discovered one step after the baseline: that step measured them there, as the level 1 that they start from.
    follows = bool(between) and parents[between[-1]] == baseline.id
    found = set(queries.born_in(session, family.id, between[-1:])) if follows else set()
    # Where the baseline builds on this checkpoint, it goes on from the directions that features were relocated to here.
    previous = _at_baseline(numbers, then.standing)
    evidence = _evidence(now, then, previous, births, found, ahead=checkpoint.id not in between)
    evidence.comparison = comparison
    judgement = judge(evidence, Policy.model_validate(family.policy))
    statuses, change = judgement.places.copy(), judgement.change.astype(np.float64)
    successors = {}
    for (number, wanted), event in _happened(session, between).items():
        for place in now.standing.places_of([number]):
            if _EVENT_OF.get(STATUSES[judgement.places[place]]) == wanted:
                statuses[place], successors[place] = PLACE[Status(event.status)], event.successors
                # Its level went on along the new direction, so the ratio does not show it.
                change[place] = max(change[place], event.change)
    floats = floats_of(judgement) | {
        "change": change,
        "strength": by_column(now.measured.strength[0], numbers).astype(np.float64),
        "direction_cosine": np.full(len(numbers), np.nan),
        "readability": by_column(now.measured.readability, numbers).astype(np.float64),
        "firing_rate": now.standing.floats["firing_rate"],
    }
    return Table(numbers, statuses, now.standing.firings, floats, previous, successors)


def _at_baseline(numbers: NDArray[np.int64], then: Table) -> NDArray[np.int8]:
    """[m] statuses that features have at the baseline, as places; -1: it has not got the feature."""
    place = np.full(int(max(numbers.max(initial=0), then.numbers.max(initial=0))) + 1, -1, dtype=np.int8)
    place[then.numbers] = then.statuses
    return place[numbers]


def _evidence(
    now: Stored, then: Stored, previous: NDArray[np.int8], births: dict[int, str], found: set[int], *, ahead: bool
) -> Evidence:
    """What two checkpoints hold against each other, columns in the order of `now`.

    births: origin of the features that came between them; found: those that start from level 1 at the baseline; ahead:
    the baseline builds on the checkpoint.
    """
    numbers, held = now.standing.numbers, now.measured
    known = previous >= 0
    emerged = [number for number, origin in births.items() if origin == "emerged"]
    born = np.isin(numbers, emerged) & ~known
    there = ~np.isin(previous, [PLACE[status] for status in GONE])
    shared = min(len(held.level), len(then.measured.level))

    def of(stored: Floats) -> Floats:
        return by_column(stored, numbers)

    discovered = np.isin(numbers, list(found)) & ~known
    reference = then.measured.references(numbers, shared)
    reference[:, discovered] = 1.0

    level = of(held.level[:shared])
    if ahead:
        moved = now.standing.statuses == PLACE[Status.RELOCATED]
        level[:, moved] = held.references(numbers[moved], shared)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # the judge leaves out what is no number
        projection = level / reference
        strength = of(held.strength[:shared]) / of(then.measured.strength[:shared])
        orthogonal = np.sqrt(np.maximum(strength**2 - projection**2, 0))
    # What is gone at the baseline is held against where it was last: its strength there is not at issue.
    z = np.where(known, np.where(there, of(then.measured.strength_z), np.inf), np.where(discovered, np.inf, 0.0))
    return Evidence(
        projection=projection,
        strength_ratio=strength,
        orthogonal=orthogonal,
        firings=now.standing.firings,
        documents=of(held.documents).astype(np.int64),
        readability=of(held.readability),
        readability_before=of(then.measured.readability),
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


def _happened(session: Session, between: Sequence[str]) -> dict[tuple[int, str], queries.Happened]:
    """(feature, status) -> its last relocation or succession on the way."""
    found = queries.events(session, between, [Status.RELOCATED, Status.REPLACED])
    latest_last = sorted(found, key=lambda event: -between.index(event.checkpoint_id))
    return {(event.feature, event.status): event for event in latest_last}


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
