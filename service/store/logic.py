"""Removes artifacts that nothing refers to.

Unreferenced artifacts are not removed at once: a run refers to its artifacts only when it ends, and a copy of the store
made after a database backup must contain everything that the backup refers to. They are noted first and removed hours
later, while no worker has a run of the family.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from featurewatch.service.config import Settings
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.models import Family
from featurewatch.service.runs import logic as runs
from featurewatch.service.store import queries
from featurewatch.service.verdicts import queries as verdicts
from featurewatch.service.verdicts.generations import ancestry, anchors, itself
from featurewatch.service.verdicts.policy import Policy

AT_ONCE = 20
"""Artifacts removed per transaction, during which no worker can take a run and nobody can write to SQLite."""
_REMOVABLE = re.compile(
    r"calibrations|(activations|code|contrast|contrast-activations|dependencies|dictionary|documents|examples|lineage"
    r"|measures|own-code|positions|promoted|rows|shards)-[0-9a-f]{20}(\..+)?"
)
"""Names of artifacts that may be removed. Anything else in the store is left alone."""


@dataclass(frozen=True)
class VacuumPlan:
    """What a vacuum of one family would do. Artifacts are mapped to their bytes."""

    released: list[str]
    """Ids of checkpoints whose activations are released."""
    due: dict[str, int]
    """Artifacts that have been unreferenced for long enough to be removed."""
    waiting: dict[str, int]
    """Artifacts that have not been unreferenced for long enough."""


@dataclass(frozen=True)
class Vacuumed:
    """What a vacuum of one family did."""

    removed: dict[str, int] = field(default_factory=dict)
    """Artifact -> bytes."""
    left: bool = False
    """Whether more artifacts are due than one transaction removes."""
    busy: bool = False
    """Whether nothing was done because a worker has a run of the family."""


def surplus(session: Session, family: Family, newest: int) -> set[str]:
    """Ids of the judged checkpoints whose activations can be released. None if `newest` is 0.

    Activations are kept for the `newest` judged checkpoints, for the checkpoints of unfinished runs and their parents,
    and for the anchors that a re-fit of a child of any of these would train on.
    """
    if not newest:
        return set()
    judged = verdicts.judged(session, family.id)
    wanted = {row.id for row in judged[-newest:]} | queries.awaited(session, family.id)
    most = Policy.model_validate(family.policy).anchors
    kept = set(wanted)
    inner = {row.parent_id for row in judged if row.id in wanted}
    for row in judged:
        if row.id in wanted - inner:  # the last of its line; its anchors include those of its ancestors
            line = [itself(session, row), *ancestry(session, row)]
            kept |= {anchor.checkpoint.id for anchor in anchors(line, row.hook_points, most)}
    return {id_ for id_, _ in queries.activations(session, family.id)} & {row.id for row in judged} - kept


def plan(session: Session, settings: Settings, family_id: str, stored: Mapping[str, int], now: datetime) -> VacuumPlan:
    """Plan a vacuum. `stored` maps artifacts to bytes, as returned by `ArtifactStore.listing`."""
    family = session.get_one(Family, family_id)
    released = surplus(session, family, settings.keep_activations)
    kept = queries.activations(session, family_id)
    folders = {name for id_, name in kept if id_ in released} - {name for id_, name in kept if id_ not in released}
    needed = (queries.references(session, family_id).keys() - folders) | queries.shared_folders(session, family_id)
    since = queries.unreferenced(session, family_id)
    before = now - timedelta(hours=settings.vacuum_hours)
    loose = {
        name: size
        for name, size in stored.items()
        if name not in needed and _REMOVABLE.fullmatch(name.removeprefix(f"{family_id}/"))
    }
    over = {name for name in loose if since.get(name, now) <= before} if settings.vacuum_hours else set()
    due = {name: size for name, size in loose.items() if name in over}
    return VacuumPlan(sorted(released), due, {name: size for name, size in loose.items() if name not in over})


def vacuum(
    session: Session,
    artifacts: ArtifactStore,
    settings: Settings,
    family_id: str,
    stored: Mapping[str, int],
    *,
    now: datetime,
    most: int = AT_ONCE,
) -> Vacuumed:
    """Release activations that retention no longer keeps, and remove at most `most` artifacts that are due.

    Runs in the caller's transaction, during which no worker can take a run of the family. If it fails, removed
    artifacts stay noted until the next vacuum. Arguments as for `plan`.
    """
    if not runs.block_claims(session, family_id):
        return Vacuumed(busy=True)
    todo = plan(session, settings, family_id, stored, now)
    if todo.released:
        queries.release_activations(session, todo.released)
    known = queries.unreferenced(session, family_id).keys()
    loose = todo.due.keys() | todo.waiting.keys()
    queries.note(session, sorted(loose - known), now)
    queries.forget(session, known - loose)
    removed, left = dict[str, int](), False
    for name, size in todo.due.items():
        if left := len(removed) == most:
            break
        if _is_old(artifacts, name, now - timedelta(hours=settings.vacuum_hours)):
            artifacts.remove(name, entry=False)
            removed[name] = size
    queries.forget(session, removed)
    if settings.vacuum_hours:
        lost = queries.references(session, family_id).keys() - stored.keys()
        for name in artifacts.put_asides(family_id).keys() - lost:
            artifacts.discard(name)
    # Also drop entries of artifacts that are no longer in the store, unless they are needed. Recent entries are left
    # alone: their artifacts may still be being written.
    needed = queries.references(session, family_id).keys()
    old = queries.entries(session, family_id, before=now - timedelta(hours=1))
    queries.erase(session, removed.keys() | {name for name in old if _top(name) not in stored and name not in needed})
    return Vacuumed(removed, left)


def _top(name: str) -> str:
    """The top-level artifact in the family's folder that contains a name."""
    return "/".join(name.split("/")[:2])


def _is_old(artifacts: ArtifactStore, name: str, before: datetime) -> bool:
    """A recently written artifact may be about to be referred to."""
    try:
        return artifacts.modified(name) <= before
    except FileNotFoundError:
        return True
