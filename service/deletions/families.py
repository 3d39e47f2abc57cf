"""Deletes a family: it is hidden at once and then removed in short transactions, which a sweep resumes after a crash.

A hidden family has no name, runs or alerts, and appears in no list. Its rows are removed first, then its artifacts, and
the family's own row last, so that sweeps continue until then.
"""

import shutil
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy.orm import Session

from featurewatch.service.config import Settings
from featurewatch.service.deletions import queries
from featurewatch.service.kit import clock
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.models import Family
from featurewatch.service.runs import logic as runs
from featurewatch.service.runs import queries as run_queries
from featurewatch.service.store import queries as store
from featurewatch.service.webhooks import logic as webhooks

ROWS = 5000
"""Rows removed per transaction, because nobody else can write to SQLite meanwhile."""
ROWS_WITH_ARRAYS = 100
LATE = timedelta(days=7)
"""How long after a deletion sweeps check whether a disconnected worker has written anything since."""
PREFIX = "fam_"
"""Prefix of every family id, and so of its folder in the artifact store."""


def delete(session: Session, family: Family) -> None:
    """Delete a family with everything that belongs to it. Raises ConflictError if a worker has a run of it."""
    runs.require_idle(session, family.id)
    runs.cancel_all(session, run_queries.unfinished(session, family.id))
    queries.drop_alerts_and_rules(session, family.id)
    webhooks.emit(session, type="family.deleted", family_id=None, data={"family": family.name}, key=family.id)
    queries.hide(session, family)


def step(session: Session, family_id: str) -> Literal["left", "empty", "busy"]:
    """Remove some rows of a deleted family. `left`: there are more. `empty`: only the family's own row remains.

    `busy`: another sweep holds the deletion, or a worker has a run that was queued during the deletion.
    """
    if not queries.take(session, family_id):
        return "busy"
    unfinished = run_queries.unfinished(session, family_id)
    runs.cancel_all(session, unfinished)
    if run_queries.active(session, family_id) is not None:
        return "busy"
    budget = 1.0
    for table, condition in queries.owned(family_id):
        rows = ROWS_WITH_ARRAYS if queries.has_arrays(table) else ROWS
        most = max(1, int(rows * budget))
        removed = queries.remove_some(session, table, condition, most)
        if removed == most:
            return "left"
        budget -= removed / rows
    return "empty"


def clear(settings: Settings, artifacts: ArtifactStore, family_id: str) -> None:
    """Remove the artifacts of a deleted family, and its files on this machine."""
    for name in artifacts.listing(family_id):
        artifacts.remove(name)
    artifacts.clear(family_id)
    artifacts.remove(family_id)
    clear_machine(settings, artifacts, family_id)


def clear_machine(settings: Settings, artifacts: ArtifactStore, family_id: str) -> None:
    """Remove a family's files on this machine: copies of artifacts, unfinished harvests and fits."""
    artifacts.forget(family_id)
    for path in (settings.data_dir / "partial").glob(f"{family_id}-*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def clear_deleted(session: Session, settings: Settings, artifacts: ArtifactStore) -> None:
    """Remove the files of all deleted families on this machine. With a local store there are none."""
    if not artifacts.is_local:
        for family_id in queries.finished(session):
            clear_machine(settings, artifacts, family_id)


def finish(session: Session, family_id: str) -> None:
    """Remove the family's own row, the last of its rows."""
    queries.finish(session, family_id, clock.utcnow())


def finished_lately(session: Session) -> list[str]:
    """Ids of families deleted so recently that a disconnected worker may still write files of them."""
    return queries.finished(session, since=clock.utcnow() - LATE)


def inspect(session: Session, artifacts: ArtifactStore) -> dict[str, Any]:
    """Unfinished deletions and leftover folders in the artifact store.

    `under_way`: ids of families that are being deleted. `left_behind`: folders of deleted families. `unknown`: folders
    of families that are not in the database, for example because it was restored from a backup.
    """
    under_way, finished = queries.under_way(session), queries.finished(session)
    names = (str(path).rstrip("/").rpartition("/")[2] for path in _top(artifacts))
    folders = {name for name in names if name.lstrip(".").startswith(PREFIX)}
    folders -= {*store.families(session), *under_way}
    left = {name for name in folders if any(name.lstrip(".").startswith(family) for family in finished)}
    return {"under_way": under_way, "left_behind": sorted(left), "unknown": sorted(folders - left)}


def _top(artifacts: ArtifactStore) -> list[str]:
    try:
        return list(artifacts.fs.ls(artifacts.base, detail=False))
    except FileNotFoundError:  # nothing was written yet
        return []
