"""What can happen to the shards of a harvest that several workers share. No function commits.

Shards are claimed as runs are: by a conditional UPDATE, with a lease and an attempt number that fences every later
write. They live only as long as the attempt of their run that opened them.
"""

from collections.abc import Iterable
from datetime import timedelta

from sqlalchemy.orm import Session

from featurewatch.service.kit import clock
from featurewatch.service.models import Run, Shard
from featurewatch.service.shards import queries

_CANDIDATES = 20
"""Others claim at the same time: so many are tried."""


def open_all(session: Session, run: Run, *, folder: str, sizes: Iterable[tuple[int, int]]) -> None:
    """Offer the groups (number, positions) of a run to all workers, in place of whatever its family had."""
    queries.drop(session, run.family_id)
    session.add_all(
        Shard(run_id=run.id, run_attempt=run.attempt, number=number, folder=folder, size=size) for number, size in sizes
    )
    session.flush()


def claim(session: Session, run_id: str, *, worker: str, lease_seconds: float | None) -> Shard | None:
    """Take the first shard of a run that waits; None where none does. `lease_seconds` None: the run's own worker."""
    now = clock.database_now(session)
    lease_until = None if lease_seconds is None else now + timedelta(seconds=lease_seconds)
    for shard_id in queries.free(session, run_id, now, _CANDIDATES):
        if queries.take(session, shard_id, worker=worker, lease_until=lease_until, now=now):
            return session.get_one(Shard, shard_id, populate_existing=True)
    return None


def heartbeat(session: Session, shard: Shard, *, read: int, lease_seconds: float) -> bool:
    """Renew a helper's lease, write its progress; False: the shard or its run is lost, or the run is to end."""
    lease_until = clock.database_now(session) + timedelta(seconds=lease_seconds)
    return queries.change(session, shard.id, shard.attempt, read=read, lease_until=lease_until)


def finish(session: Session, shard: Shard) -> bool:
    """Say that a shard was read, whole; False: it was lost."""
    return queries.change(session, shard.id, shard.attempt, read=shard.size, done_at=clock.database_now(session))


def release(session: Session, shard: Shard) -> bool:
    """Leave a shard to others."""
    return queries.change(session, shard.id, shard.attempt, read=0, worker=None, lease_until=None)
