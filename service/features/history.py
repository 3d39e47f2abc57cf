"""Changes over the checkpoints of a family: how many features changed in each, and which changed most."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from featurewatch.service.features import queries
from featurewatch.service.kit.cache import SizedCache
from featurewatch.service.kit.ids import feature_id
from featurewatch.service.models import Family
from featurewatch.service.verdicts import queries as verdicts
from featurewatch.service.verdicts.statuses import CHANGED, Status


@dataclass(frozen=True)
class Course:
    """One feature over checkpoints."""

    feature: Any
    """A row of `queries.by_numbers`."""
    statuses: dict[str, str]
    """Checkpoint id -> status there; only where it has a verdict."""


@dataclass(frozen=True)
class Predecessor:
    """A feature that was replaced in a checkpoint."""

    feature: Any
    """A row of `queries.by_numbers`."""
    checkpoint: str
    kind: str
    """replaced, split or merged."""
    cofiring: float | None
    """Share of the predecessor's activation that the successor carries"""


@dataclass(frozen=True)
class _Transitions:
    """Features that came into a status in one checkpoint."""

    counts: dict[str, int]
    changes: dict[int, float]
    """Feature number -> size of its change. Features that emerged are not included."""

    @property
    def nbytes(self) -> int:
        """Approximate memory use."""
        return 1000 + 100 * len(self.changes)


# Cached by checkpoint and revision (docs/adr/0025).
_CACHE: SizedCache[_Transitions] = SizedCache(16 * 2**20)
_MOVED = [status for status in CHANGED if status != Status.EMERGED]


def changes(session: Session, checkpoint_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """Checkpoint id -> status -> number of features that entered it there; also of those that could not be judged.

    Excludes features that were already gone at the parent. Only for read-only sessions.
    """
    return {
        checkpoint_id: transitions.counts
        for checkpoint_id, transitions in _transitions(session, checkpoint_ids).items()
    }


def most_changed(session: Session, family_id: str, checkpoint_ids: Sequence[str], most: int) -> list[Course]:
    """The features that changed most in any of the checkpoints, watched ones first. Emerging does not count.

    Only for read-only sessions.
    """
    largest: dict[int, float] = {}
    for transitions in _transitions(session, checkpoint_ids).values():
        for number, change in transitions.changes.items():
            largest[number] = max(change, largest.get(number, 0.0))
    watched = set(queries.watched(session, family_id))
    ranked = sorted(largest, key=lambda number: (number not in watched, -largest[number], number))[:most]
    features = queries.by_numbers(session, family_id, ranked)
    statuses: dict[int, dict[str, str]] = {number: {} for number in ranked}
    for number, checkpoint_id, status in queries.statuses(session, family_id, ranked):
        statuses[number][checkpoint_id] = status
    return [Course(features[number], statuses[number]) for number in ranked]


def _transitions(session: Session, checkpoint_ids: Sequence[str]) -> dict[str, _Transitions]:
    revisions = verdicts.revisions(session, checkpoint_ids)
    keys = [(checkpoint_id, revisions[checkpoint_id]) for checkpoint_id in checkpoint_ids]
    return {key[0]: transitions for key, transitions in _CACHE.get_all(keys, partial(_read, session)).items()}


def _read(session: Session, keys: Sequence[tuple[str, int]]) -> dict[tuple[str, int], _Transitions]:
    transitions = {checkpoint_id: _Transitions({}, {}) for checkpoint_id, _ in keys}
    ids = [*transitions]
    for checkpoint_id, status, count in queries.counts(session, ids, (*CHANGED, Status.INDETERMINATE)):
        transitions[checkpoint_id].counts[status] = count
    for checkpoint_id, number, change in queries.changes(session, ids, _MOVED):
        transitions[checkpoint_id].changes[number] = change
    return {key: transitions[key[0]] for key in keys}


def predecessors(session: Session, family: Family, number: int) -> list[Predecessor]:
    """The features that a feature has replaced, oldest first."""
    own = feature_id(number)
    replaced = queries.replaced_by(session, family.id, own)
    features = queries.by_numbers(session, family.id, [row[0] for row in replaced])
    return [
        Predecessor(features[old], checkpoint, successor["kind"], successor.get("cofiring"))
        for old, checkpoint, successors in replaced
        for successor in successors
        if successor["id"] == own
    ]
