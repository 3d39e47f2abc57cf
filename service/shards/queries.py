"""SQL of shards. Each change is one conditional UPDATE, so exactly one of two competing workers wins."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from featurewatch.service.kit.db import changes_one_row
from featurewatch.service.models import Run, Shard
from featurewatch.service.runs.states import RunState


def _run_active() -> ColumnElement[bool]:
    """The run is still in the attempt that the shard belongs to."""
    run = aliased(Run)
    same = select(run.id).where(run.id == Shard.run_id, run.state == RunState.RUNNING, run.attempt == Shard.run_attempt)
    return exists(same.correlate(Shard))


def _free(now: datetime) -> ColumnElement[bool]:
    return and_(Shard.done_at.is_(None), or_(Shard.worker.is_(None), Shard.lease_until < now))


def any_free(session: Session, now: datetime) -> bool:
    """Whether a shard of any run is free."""
    return session.scalar(select(exists().where(_free(now), _run_active()))) or False


def any_leased(session: Session, now: datetime) -> bool:
    """Whether a helper holds a shard of any run."""
    return session.scalar(select(exists().where(Shard.done_at.is_(None), Shard.lease_until > now))) or False


def offers(session: Session, now: datetime) -> Sequence[tuple[str, str]]:
    """(run id, folder) of runs with free shards, by priority."""
    rows = session.execute(
        select(Run.id, Shard.folder)
        .join(Shard, Shard.run_id == Run.id)
        .where(_free(now), _run_active())
        .group_by(Run.id, Shard.folder)
        .order_by(Run.priority.desc(), Run.created_at)
    )
    return [(row[0], row[1]) for row in rows]


def free(session: Session, run_id: str, now: datetime, limit: int) -> Sequence[str]:
    """Ids of a run's free shards, in order."""
    statement = select(Shard.id).where(Shard.run_id == run_id, _free(now), _run_active())
    return session.scalars(statement.order_by(Shard.number).limit(limit)).all()


def take(session: Session, shard_id: str, *, worker: str, lease_until: datetime | None, now: datetime) -> bool:
    """Give a free shard to a worker. False if it is not free any more."""
    return changes_one_row(
        session,
        update(Shard)
        .where(Shard.id == shard_id, _free(now), _run_active())
        .values(attempt=Shard.attempt + 1, worker=worker, lease_until=lease_until, read=0),
    )


def change(session: Session, shard_id: str, attempt: int, **values: Any) -> bool:
    """Write values as the holder. False if the caller does not hold the shard, or its run has ended."""
    statement = update(Shard).where(Shard.id == shard_id, Shard.attempt == attempt, Shard.done_at.is_(None))
    return changes_one_row(session, statement.where(_run_active()).values(**values))


class Done(NamedTuple):
    """A group that a helper has stored."""

    id: str
    number: int
    worker: str | None


def done_by_helpers(session: Session, run_id: str, folder: str) -> Sequence[Done]:
    """Shards in a folder that helpers have finished, in order."""
    rows = session.execute(
        select(Shard.id, Shard.number, Shard.worker)
        .where(Shard.run_id == run_id, Shard.folder == folder)
        .where(Shard.done_at.is_not(None), Shard.lease_until.is_not(None))
        .order_by(Shard.number)
    )
    return [Done(*row) for row in rows]


def read_by_helpers(session: Session, run_id: str) -> int:
    """Number of a run's positions that helpers have read."""
    helpers = (Shard.run_id == run_id, Shard.lease_until.is_not(None))
    return int(session.scalar(select(func.coalesce(func.sum(Shard.read), 0)).where(*helpers)) or 0)


def folders(session: Session, family_id: str) -> Sequence[str]:
    """Folders of the shards of all runs of a family."""
    runs = select(Run.id).where(Run.family_id == family_id)
    return session.scalars(select(Shard.folder).where(Shard.run_id.in_(runs)).distinct()).all()


def drop(session: Session, family_id: str) -> None:
    """Remove all shards of a family."""
    session.execute(delete(Shard).where(Shard.run_id.in_(select(Run.id).where(Run.family_id == family_id))))


def reopen(session: Session, shard_id: str) -> None:
    """Make a finished shard free again."""
    session.execute(
        update(Shard).where(Shard.id == shard_id).values(worker=None, lease_until=None, read=0, done_at=None)
    )
