"""What changed over the checkpoints of a family: how many features in each, and which ones most."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy.orm import Session

from featurewatch.service.features import queries
from featurewatch.service.features.schemas import FeatureFields
from featurewatch.service.kit.ids import feature_id
from featurewatch.service.kit.kept import Kept
from featurewatch.service.models import Family
from featurewatch.service.verdicts import queries as verdicts
from featurewatch.service.verdicts.statuses import CHANGED, Status


@dataclass(frozen=True)
class Course:
    """One feature over checkpoints."""

    feature: FeatureFields
    statuses: dict[str, str]
    """Checkpoint id -> status there; only where it has a verdict."""


@dataclass(frozen=True)
class Predecessor:
    """A feature that another one replaced in a checkpoint."""

    feature: FeatureFields
    checkpoint: str
    kind: str
    """replaced, split or merged."""
    cofiring: float | None
    """Share of the predecessor's activation that the successor carries."""


@dataclass(frozen=True)
class _Came:
    """What came about in one checkpoint, against its parent."""

    counts: dict[str, int]
    changes: dict[int, float]
    """Feature number -> change, of those that changed; to emerge is no change."""

    @property
    def nbytes(self) -> int:
        """About what it takes in memory."""
        return 1000 + 100 * len(self.changes)


# By checkpoint and revision, as all that is kept of verdicts (docs/adr/0025).
_CAME: Kept[_Came] = Kept(16 * 2**20)
_MOVED = [status for status in CHANGED if status != Status.EMERGED]


def changes(session: Session, checkpoint_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """Checkpoint id -> status -> how many features came into it there, as reports count them; and those not judged.

    What was gone at the parent already is left out. For sessions that only read.
    """
    return {one: came.counts for one, came in _came(session, checkpoint_ids).items()}


def most_changed(session: Session, family_id: str, checkpoint_ids: Sequence[str], most: int) -> list[Course]:
    """The features that changed most in any of the checkpoints, watched ones first. To emerge alone is no change.

    For sessions that only read.
    """
    largest: dict[int, float] = {}
    for came in _came(session, checkpoint_ids).values():
        for number, change in came.changes.items():
            largest[number] = max(change, largest.get(number, 0.0))
    watched = set(queries.watched(session, family_id))
    ranked = sorted(largest, key=lambda number: (number not in watched, -largest[number], number))[:most]
    features = queries.by_numbers(session, family_id, ranked)
    statuses: dict[int, dict[str, str]] = {number: {} for number in ranked}
    for number, checkpoint_id, status in queries.statuses(session, family_id, ranked):
        statuses[number][checkpoint_id] = status
    return [Course(features[number], statuses[number]) for number in ranked]


def _came(session: Session, checkpoint_ids: Sequence[str]) -> dict[str, _Came]:
    revisions = verdicts.revisions(session, checkpoint_ids)
    found = _CAME.get_all([(one, revisions[one]) for one in checkpoint_ids], partial(_read, session))
    return {one: came for (one, _), came in found.items()}


def _read(session: Session, keys: Sequence[tuple[str, int]]) -> dict[tuple[str, int], _Came]:
    ids = [one for one, _ in keys]
    read = {one: _Came({}, {}) for one in ids}
    for one, status, count in queries.counts(session, ids, (*CHANGED, Status.INDETERMINATE)):
        read[one].counts[status] = count
    for one, number, change in queries.changes(session, ids, _MOVED):
        read[one].changes[number] = change
    return {key: read[key[0]] for key in keys}


def predecessors(session: Session, family: Family, number: int) -> list[Predecessor]:
    """What a feature has replaced, in every checkpoint, oldest first."""
    own = feature_id(number)
    found = queries.replaced_by(session, family.id, own)
    features = queries.by_numbers(session, family.id, [row[0] for row in found])
    return [
        Predecessor(features[old], checkpoint, one["kind"], one.get("cofiring"))
        for old, checkpoint, successors in found
        for one in successors
        if one["id"] == own
    ]
