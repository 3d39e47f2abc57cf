"""SQL of shards. Each change is one conditional UPDATE, so of two that want the same exactly one wins."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from featurewatch.service.kit.db import changes_one_row
from featurewatch.service.models import Run, Shard
from featurewatch.service.runs.states import RunState


def _led() -> ColumnElement[bool]:
    """The run goes on, in the attempt that the shard belongs to."""
    run = aliased(Run)
    led = select(run.id).where(run.id == Shard.run_id, run.state == RunState.RUNNING, run.attempt == Shard.run_attempt)
    return exists(led.correlate(Shard))


def _free(now: datetime) -> ColumnElement[bool]:
    return and_(Shard.done_at.is_(None), or_(Shard.worker.is_(None), Shard.lease_until < now))


def any_free(session: Session, now: datetime) -> bool:
    """Whether a shard of any run waits for a worker."""
    return session.scalar(select(exists().where(_free(now), _led()))) or False


def any_leased(session: Session, now: datetime) -> bool:
    """Whether a helper holds a shard of any run."""
    return session.scalar(select(exists().where(Shard.done_at.is_(None), Shard.lease_until > now))) or False


def offers(session: Session, now: datetime) -> Sequence[tuple[str, str]]:
    """(run id, folder) of runs with shards that wait, the run first that is first in line."""
    rows = session.execute(
        select(Run.id, Shard.folder)
        .join(Shard, Shard.run_id == Run.id)
        .where(_free(now), _led())
        .group_by(Run.id, Shard.folder)
        .order_by(Run.priority.desc(), Run.created_at)
    )
    return [(row[0], row[1]) for row in rows]


def free(session: Session, run_id: str, now: datetime, limit: int) -> Sequence[str]:
    """Ids of shards of a run that wait, in order."""
    return session.scalars(
        select(Shard.id).where(Shard.run_id == run_id, _free(now), _led()).order_by(Shard.number).limit(limit)
    ).all()


def take(session: Session, shard_id: str, *, worker: str, lease_until: datetime | None, now: datetime) -> bool:
    """Give a shard that waits to a worker."""
    return changes_one_row(
        session,
        update(Shard)
        .where(Shard.id == shard_id, _free(now), _led())
        .values(attempt=Shard.attempt + 1, worker=worker, lease_until=lease_until, read=0),
    )


def change(session: Session, shard_id: str, attempt: int, **values: Any) -> bool:
    """Write the holder's values; False where the caller does not hold it, or its run does not go on."""
    held = update(Shard).where(Shard.id == shard_id, Shard.attempt == attempt, Shard.done_at.is_(None), _led())
    return changes_one_row(session, held.values(**values))


class Done(NamedTuple):
    """A group that a helper has put into the store."""

    id: str
    number: int
    worker: str | None


def done_by_helpers(session: Session, run_id: str, folder: str) -> Sequence[Done]:
    """What other workers than the run's own have done in a folder, in order."""
    rows = session.execute(
        select(Shard.id, Shard.number, Shard.worker)
        .where(Shard.run_id == run_id, Shard.folder == folder)
        .where(Shard.done_at.is_not(None), Shard.lease_until.is_not(None))
        .order_by(Shard.number)
    )
    return [Done(*row) for row in rows]


def read_by_helpers(session: Session, run_id: str) -> int:
    """Positions of a run that were read by other workers than its own."""
    helpers = (Shard.run_id == run_id, Shard.lease_until.is_not(None))
    return int(session.scalar(select(func.coalesce(func.sum(Shard.read), 0)).where(*helpers)) or 0)


def folders(session: Session, family_id: str) -> Sequence[str]:
    """Folders that shards of any run of a family were read into."""
    runs = select(Run.id).where(Run.family_id == family_id)
    return session.scalars(select(Shard.folder).where(Shard.run_id.in_(runs)).distinct()).all()


def drop(session: Session, family_id: str) -> None:
    """Remove all shards of a family."""
    session.execute(delete(Shard).where(Shard.run_id.in_(select(Run.id).where(Run.family_id == family_id))))


def reopen(session: Session, shard_id: str) -> None:
    """Put a shard back that was called done."""
    session.execute(
        update(Shard).where(Shard.id == shard_id).values(worker=None, lease_until=None, read=0, done_at=None)
    )
