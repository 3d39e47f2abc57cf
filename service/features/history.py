"""What changed over the checkpoints of a family: how many features in each, and which ones most."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from service.features import queries
from service.features.schemas import FeatureFields
from service.features.words import SEVERITY
from service.kit.ids import feature_id
from service.models import Family


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


def changes(session: Session, checkpoint_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """Checkpoint id -> status -> how many features came into it there, as reports count them; and those not judged.

    What was gone at the parent already is left out.
    """
    found: dict[str, dict[str, int]] = {one: {} for one in checkpoint_ids}
    for checkpoint_id, status, count in queries.changes(session, checkpoint_ids, (*SEVERITY, "indeterminate")):
        found[checkpoint_id][status] = count
    return found


def most_changed(session: Session, family_id: str, checkpoint_ids: Sequence[str], most: int) -> list[Course]:
    """The features that changed most in any of the checkpoints, watched ones first. To emerge alone is no change."""
    statuses_of_change = [status for status in SEVERITY if status != "emerged"]
    largest = dict(queries.largest(session, checkpoint_ids, statuses_of_change))
    watched = set(queries.watched(session, family_id))
    ranked = sorted(largest, key=lambda number: (number not in watched, -largest[number], number))[:most]
    features = queries.by_numbers(session, family_id, ranked)
    statuses: dict[int, dict[str, str]] = {number: {} for number in ranked}
    for number, checkpoint_id, status in queries.statuses(session, family_id, ranked):
        statuses[number][checkpoint_id] = status
    return [Course(features[number], statuses[number]) for number in ranked]


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
