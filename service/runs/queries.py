"""SQL of runs, their logs and their bells."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, Select, delete, exists, func, insert, select, update
from sqlalchemy.orm import Session, aliased

from featurewatch.service.families.queries import LISTED
from featurewatch.service.kit.db import changes_one_row
from featurewatch.service.models import Attempt, Bell, Checkpoint, Family, LogLine, Run, Shard
from featurewatch.service.runs.states import ACTIVE, FINAL, RunState, can_become

_CANDIDATES = 20


def listing(*, family: str | None = None, state: RunState | None = None, checkpoint: str | None = None) -> Select[Any]:
    """Select matching runs with the names of their family and checkpoint, in no order."""
    statement: Any = (
        select(Run, Family.name, Checkpoint.name)
        .join(Family, Family.id == Run.family_id)
        .outerjoin(Checkpoint, Checkpoint.id == Run.checkpoint_id)
        .where(LISTED)
    )
    if family is not None:
        statement = statement.where(Family.name == family)
    if state is not None:
        statement = statement.where(Run.state == state)
    if checkpoint is not None:
        statement = statement.where(Checkpoint.name == checkpoint)
    return statement


def by_id(session: Session, run_id: str) -> tuple[Run, str, str | None] | None:
    """A run with the names of its family and checkpoint."""
    row: Any = session.execute(listing().where(Run.id == run_id)).one_or_none()
    return None if row is None else (row[0], row[1], row[2])


def candidates(session: Session, *, run_id: str | None) -> Sequence[tuple[str, str, str]]:
    """(run id, family id, kind) of queued runs of idle families, in the order of the queue.

    run_id: only runs of the family of this run. A bell says where there is work, the queue says which run is next.
    """
    statement = (
        select(Run.id, Run.family_id, Run.kind)
        .where(Run.state == RunState.QUEUED, _family_idle())
        .order_by(*_LINE)
        .limit(_CANDIDATES)
    )
    if run_id is not None:
        statement = statement.where(Run.family_id == select(Run.family_id).where(Run.id == run_id).scalar_subquery())
    return [(row[0], row[1], row[2]) for row in session.execute(statement)]


def _family_idle() -> ColumnElement[bool]:
    """No run of the family is active."""
    active = aliased(Run)
    return ~exists(select(active.id).where(active.family_id == Run.family_id, active.state.in_(ACTIVE)).correlate(Run))


def kind(session: Session, run_id: str) -> str | None:
    """The kind of a run."""
    return session.scalar(select(Run.kind).where(Run.id == run_id))


def state(session: Session, run_id: str, attempt: int) -> str | None:
    """The state of a run, or None if another attempt has begun."""
    return session.scalar(select(Run.state).where(Run.id == run_id, Run.attempt == attempt))


def waits_before(session: Session, family_id: str, priority: int) -> bool:
    """Whether a run of a family with a higher priority is queued."""
    ahead = exists().where(Run.state == RunState.QUEUED, Run.family_id == family_id, Run.priority > priority)
    return bool(session.scalar(select(ahead)))


def take(session: Session, run_id: str, *, worker: str, lease_until: datetime, now: datetime) -> bool:
    """Claim a queued run of an idle family. IntegrityError if another worker has just claimed one of its runs."""
    return changes_one_row(
        session,
        update(Run)
        .where(Run.id == run_id, Run.state == RunState.QUEUED, _family_idle())
        .values(
            state=RunState.RUNNING,
            attempt=Run.attempt + 1,
            worker=worker,
            lease_until=lease_until,
            started_at=func.coalesce(Run.started_at, now),
            finished_at=None,
            error=None,
            stage=None,
            progress=0.0,
            detail={},
            usage={},
            updated_at=now,
        ),
    )


def renew(session: Session, *, run_id: str, attempt: int, now: datetime, **values: Any) -> RunState | None:
    """Write values of the worker that holds a run. Returns the run's state, or None if the fence is lost."""
    state = session.execute(
        update(Run)
        .where(Run.id == run_id, Run.attempt == attempt, Run.state.in_(ACTIVE))
        .values(updated_at=now, **values)
        .returning(Run.state)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    return None if state is None else RunState(state)


def move(
    session: Session,
    run_id: str,
    *,
    new: RunState,
    now: datetime,
    attempt: int | None = None,
    expected: RunState | None = None,
    lease_before: datetime | None = None,
    **values: Any,
) -> bool:
    """Move a run to `new` if the state machine allows it and every given condition holds. Returns whether it moved."""
    allowed = [state for state in RunState if can_become(state, new)]
    statement = update(Run).where(Run.id == run_id, Run.state.in_([expected] if expected else allowed))
    if attempt is not None:
        statement = statement.where(Run.attempt == attempt)
    if lease_before is not None:
        statement = statement.where(Run.lease_until < lease_before)
    return changes_one_row(session, statement.values(state=new, updated_at=now, **values))


def end_attempt(session: Session, run: Run, *, now: datetime, error: dict[str, Any] | None) -> None:
    """Record how an attempt ended: the new state of the run, the error, and the cost."""
    session.execute(
        update(Attempt)
        .where(Attempt.run_id == run.id, Attempt.number == run.attempt)
        .values(outcome=run.state, error=error, usage=run.usage, ended_at=now)
    )


def attempts(run_id: str) -> Select[Attempt]:
    """Select the attempts at a run, in no order."""
    return select(Attempt).where(Attempt.run_id == run_id)


def line_count(session: Session, run_id: str, attempt: int) -> int | None:
    """Number of the last line of a run's log, or None if another attempt has begun."""
    return session.scalar(select(Run.lines).where(Run.id == run_id, Run.attempt == attempt))


def add_lines(session: Session, run_id: str, attempt: int, lines: Sequence[dict[str, Any]], last: int) -> None:
    """Append lines of an attempt. last: the number of the last one."""
    session.execute(insert(LogLine), [{"run_id": run_id, "attempt": attempt, **line} for line in lines])
    session.execute(update(Run).where(Run.id == run_id).values(lines=last))


def drop_lines(session: Session, run_id: str, first: int, last: int, **values: Any) -> None:
    """Replace the lines `first` to `last` by one warning with these values."""
    of_run = LogLine.run_id == run_id
    session.execute(delete(LogLine).where(of_run, LogLine.number > first, LogLine.number <= last))
    session.execute(update(LogLine).where(of_run, LogLine.number == first).values(level="warning", **values))


def lines(run_id: str, *, attempt: int | None, levels: Sequence[str], beyond: int) -> Select[LogLine]:
    """Select the lines of a run's log with numbers above `beyond`, in no order."""
    statement = select(LogLine).where(LogLine.run_id == run_id, LogLine.number > beyond, LogLine.level.in_(levels))
    return statement if attempt is None else statement.where(LogLine.attempt == attempt)


def raise_priority(session: Session, family_id: str, kind: str, priority: int) -> None:
    """Raise queued runs of a family and kind to a priority."""
    session.execute(
        update(Run)
        .where(Run.family_id == family_id, Run.kind == kind, Run.state == RunState.QUEUED, Run.priority < priority)
        .values(priority=priority)
    )


def any_stale(session: Session, now: datetime) -> bool:
    """Whether the lease of an active run has expired."""
    return session.scalar(select(exists().where(Run.state.in_(ACTIVE), Run.lease_until < now))) or False


def any_active(session: Session) -> bool:
    """Whether any run is active, with or without a live worker."""
    return session.scalar(select(exists().where(Run.state.in_(ACTIVE)))) or False


def active(session: Session, family_id: str) -> Run | None:
    """The active run of a family."""
    return session.scalars(select(Run).where(Run.family_id == family_id, Run.state.in_(ACTIVE))).one_or_none()


def unfinished(
    session: Session, family_id: str, *, checkpoint_id: str | None = None, kind: str | None = None
) -> Sequence[Run]:
    """Runs of a family that have not ended, oldest first."""
    statement = select(Run).where(Run.family_id == family_id, Run.state.not_in(FINAL))
    if checkpoint_id is not None:
        statement = statement.where(Run.checkpoint_id == checkpoint_id)
    if kind is not None:
        statement = statement.where(Run.kind == kind)
    return session.scalars(statement.order_by(Run.created_at, Run.id)).all()


def remove(session: Session, *conditions: ColumnElement[bool]) -> int:
    """Delete ended runs with their bells and shards, and return how many. The database deletes logs and attempts."""
    ended = (Run.state.in_(FINAL), *conditions)
    for table in (Bell, Shard):
        session.execute(delete(table).where(table.run_id.in_(select(Run.id).where(*ended))))
    result = session.execute(delete(Run).where(*ended).execution_options(synchronize_session=False))
    return result.rowcount if isinstance(result, CursorResult) else 0


def stale(session: Session, now: datetime) -> Sequence[Run]:
    """Active runs whose lease has expired, except those that a live worker has locked."""
    statement = (
        select(Run)
        .where(Run.state.in_(ACTIVE), Run.lease_until < now)
        .order_by(Run.lease_until)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    )
    return session.scalars(statement).all()


def next_in_line(session: Session, family_id: str) -> str | None:
    """Id of the next queued run of a family."""
    return session.scalars(
        select(Run.id).where(Run.family_id == family_id, Run.state == RunState.QUEUED).order_by(*_LINE).limit(1)
    ).one_or_none()


def set_checkpoint_state(session: Session, checkpoint_id: str | None, *, old: str, new: str) -> None:
    """Change the state of a run's checkpoint, if it is `old`."""
    if checkpoint_id is not None:
        session.execute(
            update(Checkpoint).where(Checkpoint.id == checkpoint_id, Checkpoint.state == old).values(state=new)
        )


def silent_bells(session: Session, limit: int) -> Sequence[tuple[int, str, str]]:
    """(bell id, run id, kind) of bells that have not been rung, oldest first."""
    return _bells(session, select(Bell.id, Run.id, Run.kind).where(Bell.rung_at.is_(None)).limit(limit))


def mark_rung(session: Session, bell_ids: Sequence[int], now: datetime) -> None:
    """Mark bells as rung."""
    session.execute(update(Bell).where(Bell.id.in_(bell_ids)).values(rung_at=now))


def unheard(session: Session, *, rung_before: datetime, limit: int) -> Sequence[tuple[int, str, str]]:
    """As `silent_bells`, of queued runs of idle families whose newest bell is old: its message may be lost."""
    newest = select(func.max(Bell.id)).group_by(Bell.run_id)
    return _bells(
        session,
        select(Bell.id, Run.id, Run.kind)
        .where(Bell.id.in_(newest), Bell.rung_at < rung_before, Run.state == RunState.QUEUED, _family_idle())
        .limit(limit),
    )


def _bells(session: Session, statement: Select[int, str, str]) -> Sequence[tuple[int, str, str]]:
    rows = session.execute(statement.join(Run, Run.id == Bell.run_id).order_by(Bell.id))
    return [(row[0], row[1], row[2]) for row in rows]


def drop_old_bells(session: Session, *, rung_before: datetime) -> None:
    """Delete old bells of runs that are no longer queued."""
    waiting = select(Run.id).where(Run.state == RunState.QUEUED)
    session.execute(delete(Bell).where(Bell.rung_at < rung_before, Bell.run_id.not_in(waiting)))


_LINE = (Run.priority.desc(), Run.created_at, Run.id)
