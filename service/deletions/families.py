"""Deleting a family: hidden at once, then removed in short transactions, which a sweep goes on with after a crash.

What is hidden has no name, no runs and no alerts, and is in no list. Its rows go first, then its artifacts, then the
row of the family, which is what makes the next sweep go on until then.
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
"""Rows that one transaction removes: on SQLite nobody else can write meanwhile."""
ROWS_WITH_ARRAYS = 100
LATE = timedelta(days=7)
"""For so long after a deletion sweeps look whether a worker that was cut off has written anything since."""
PREFIX = "fam_"
"""Begins the id of every family, and the name of its folder in the artifact store."""


def delete(session: Session, family: Family) -> None:
    """Delete a family with all that belongs to it. ConflictError where a worker has a run of it."""
    runs.require_idle(session, family.id)
    runs.cancel_all(session, run_queries.unfinished(session, family.id))
    queries.drop_alerts_and_rules(session, family.id)
    webhooks.emit(session, type="family.deleted", family_id=None, data={"family": family.name}, key=family.id)
    queries.hide(session, family)


def step(session: Session, family_id: str) -> Literal["left", "empty", "busy"]:
    """Remove some rows of a family that was deleted. `left`: there are more; `empty`: only the family's own is left.

    `busy`: another sweep is at it, or a worker has a run that was queued in the moment of the deletion.
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
    """Remove the artifacts of a family that was deleted, and what this machine keeps of it beside them."""
    for name in artifacts.listing(family_id):
        artifacts.remove(name)
    artifacts.clear(family_id)
    artifacts.remove(family_id)
    clear_machine(settings, artifacts, family_id)


def clear_machine(settings: Settings, artifacts: ArtifactStore, family_id: str) -> None:
    """Remove this machine's copies of artifacts, and unfinished harvests and fits."""
    artifacts.forget(family_id)
    for path in (settings.data_dir / "partial").glob(f"{family_id}-*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def clear_deleted(session: Session, settings: Settings, artifacts: ArtifactStore) -> None:
    """Remove what this machine keeps of all families that were deleted; in a local store there is nothing beside it."""
    if not artifacts.is_local:
        for family_id in queries.finished(session):
            clear_machine(settings, artifacts, family_id)


def finish(session: Session, family_id: str) -> None:
    """Remove the row of a family of which nothing else is left."""
    queries.finish(session, family_id, clock.utcnow())


def finished_lately(session: Session) -> list[str]:
    """Ids of families whose deletion ended so lately that a worker that was cut off may still write of them."""
    return queries.finished(session, since=clock.utcnow() - LATE)


def inspect(session: Session, artifacts: ArtifactStore) -> dict[str, Any]:
    """What the deletions of an installation have left: ids of families, and folders of the artifact store.

    `under_way`: families that are being deleted; `left_behind`: folders of families that were deleted; `unknown`:
    folders of families that the database does not have, for example because it was restored from a backup.
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
