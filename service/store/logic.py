"""What an installation holds, whether it is whole, and what of it may go.

An artifact that nothing refers to is not removed at once. A run refers to what it makes when it ends, and a copy of the
store that is begun after a backup of the database must have all that the backup refers to. So it is noted first, and
removed some hours later, at a moment when no worker has a run of the family.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from featurewatch.service.config import Settings
from featurewatch.service.deletions import families as deletions
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.models import Family
from featurewatch.service.runs import logic as runs
from featurewatch.service.store import queries
from featurewatch.service.store.retention import surplus

AT_ONCE = 20
"""Artifacts that one turn removes: no worker can take a run meanwhile, and on SQLite nobody can write."""
_REMOVABLE = re.compile(
    r"calibrations|(activations|code|contrast|contrast-activations|dependencies|dictionary|documents|examples|lineage"
    r"|measures|positions|promoted|shards)-[0-9a-f]{20}(\..+)?"
)
"""Artifacts that we know. What has another name in the store is left alone."""


@dataclass(frozen=True)
class Found:
    """What a vacuum finds in one family. Artifacts with their bytes."""

    released: list[str]
    """Ids of checkpoints whose activations are kept no longer"""
    due: dict[str, int]
    """Nothing has referred to them for so long that they may go now"""
    waiting: dict[str, int]
    """Nothing refers to them, but that was not so or not seen long enough ago"""


@dataclass(frozen=True)
class Vacuumed:
    """What a vacuum of one family did."""

    removed: dict[str, int] = field(default_factory=dict)
    """artifact -> bytes"""
    left: bool = False
    """Whether there was more than one turn removes"""
    busy: bool = False
    """A worker has a run of the family: nothing was done"""


def look(session: Session, settings: Settings, family_id: str, stored: Mapping[str, int], now: datetime) -> Found:
    """What a vacuum would do. stored: artifact -> bytes, as `ArtifactStore.listing` of the family gave it."""
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
    return Found(sorted(released), due, {name: size for name, size in loose.items() if name not in over})


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
    """Let go what the policy keeps no longer, and remove at most `most` artifacts that are due.

    In the caller's transaction, during which no worker can take a run of the family. Where it fails, what was removed
    is gone, and stays noted until the next time. Arguments as of `look`.
    """
    if not runs.block_claims(session, family_id):
        return Vacuumed(busy=True)
    found = look(session, settings, family_id, stored, now)
    if found.released:
        queries.let_go(session, found.released)
    known = queries.unreferenced(session, family_id).keys()
    loose = found.due.keys() | found.waiting.keys()
    queries.note(session, sorted(loose - known), now)
    queries.forget(session, known - loose)
    removed, left = dict[str, int](), False
    for name, size in found.due.items():
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
    # Entries of artifacts that somebody else has removed go too, unless something needs them. One that was made a
    # moment ago is of an artifact that is being written.
    needed = queries.references(session, family_id).keys()
    old = queries.entries(session, family_id, before=now - timedelta(hours=1))
    queries.erase(session, removed.keys() | {name for name in old if _top(name) not in stored and name not in needed})
    return Vacuumed(removed, left)


def _top(name: str) -> str:
    """The artifact directly in its family's folder that a name is, or is below."""
    return "/".join(name.split("/")[:2])


def _is_old(artifacts: ArtifactStore, name: str, before: datetime) -> bool:
    """Written anew a moment ago means that a request is about to refer to it."""
    try:
        return artifacts.modified(name) <= before
    except FileNotFoundError:
        return True


def inspect(session: Session, artifacts: ArtifactStore) -> dict[str, Any]:
    """What is there, and what is broken: references to artifacts that are missing or of another size, rows without
    their parents."""
    missing: list[dict[str, str]] = []
    damaged: list[dict[str, str]] = []
    aside: list[dict[str, Any]] = []
    loose, held = dict[str, int](), 0
    for family_id in queries.families(session):
        stored = artifacts.listing(family_id)
        needed = queries.references(session, family_id)
        missing += [{"artifact": name, "column": needed[name]} for name in sorted(needed.keys() - stored.keys())]
        written = queries.entries(session, family_id)
        damaged += [
            {"artifact": name, "reason": f"it has {stored[name]:,} bytes, {written[name]:,} were written"}
            for name in sorted(needed.keys() & stored.keys() & written.keys())
            if stored[name] != written[name]
        ]
        known = needed.keys() | queries.shared_folders(session, family_id)
        loose |= {name: size for name, size in stored.items() if name not in known}
        held += sum(stored.values())
        aside += [{"artifact": name, "bytes": size} for name, size in artifacts.put_asides(family_id).items()]
    return {
        "engine": queries.engine(session),
        "bytes": queries.size(session),
        "rows": queries.row_counts(session),
        "artifact_bytes": held,
        "missing": missing,
        "damaged": damaged,
        "put_aside": aside,
        "unreferenced": len(loose),
        "unreferenced_bytes": sum(loose.values()),
        "orphans": queries.orphans(session),
        "deletions": deletions.inspect(session, artifacts),
    }
