"""State changes of the shards of a harvest that several workers share. No function commits.

Shards are claimed like runs: by a conditional UPDATE, with a lease and an attempt number that fences every later
write. They are valid only during the attempt of the run that opened them.
"""

from collections.abc import Iterable
from datetime import timedelta

from sqlalchemy.orm import Session

from featurewatch.service.kit import clock
from featurewatch.service.models import Run, Shard
from featurewatch.service.shards import queries

_CANDIDATES = 20
"""Number of shards to try, because other workers claim at the same time."""


def open_all(session: Session, run: Run, *, folder: str, sizes: Iterable[tuple[int, int]]) -> None:
    """Offer the groups (number, positions) of a run to all workers, replacing all shards of the family."""
    queries.drop(session, run.family_id)
    session.add_all(
        Shard(run_id=run.id, run_attempt=run.attempt, number=number, folder=folder, size=size) for number, size in sizes
    )
    session.flush()


def claim(session: Session, run_id: str, *, worker: str, lease_seconds: float | None) -> Shard | None:
    """Claim the first free shard of a run; None if there is none. The run's own worker passes no `lease_seconds`."""
    now = clock.database_now(session)
    lease_until = None if lease_seconds is None else now + timedelta(seconds=lease_seconds)
    for shard_id in queries.free(session, run_id, now, _CANDIDATES):
        if queries.take(session, shard_id, worker=worker, lease_until=lease_until, now=now):
            return session.get_one(Shard, shard_id, populate_existing=True)
    return None


def heartbeat(session: Session, shard: Shard, *, read: int, lease_seconds: float) -> bool:
    """Renew a helper's lease and write its progress. False if the shard or the run is lost or ending."""
    lease_until = clock.database_now(session) + timedelta(seconds=lease_seconds)
    return queries.change(session, shard.id, shard.attempt, read=read, lease_until=lease_until)


def finish(session: Session, shard: Shard) -> bool:
    """Mark a shard as completely read. False if it was lost."""
    return queries.change(session, shard.id, shard.attempt, read=shard.size, done_at=clock.database_now(session))


def release(session: Session, shard: Shard) -> bool:
    """Return a shard, so that others can claim it."""
    return queries.change(session, shard.id, shard.attempt, read=0, worker=None, lease_until=None)
