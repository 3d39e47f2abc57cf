"""State changes of runs. Each is one conditional UPDATE, so exactly one of two conflicting changes wins.

No function commits. A worker's changes carry its attempt number, the fence: the writes of a worker that lost its run
to another worker match no row.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from featurewatch.service.kit import clock
from featurewatch.service.kit.problems import ConflictError, NotFoundError
from featurewatch.service.models import Attempt, Bell, Checkpoint, Family, Run
from featurewatch.service.runs import lines, queries
from featurewatch.service.runs.kinds import queue_of
from featurewatch.service.runs.states import ACTIVE, FINAL, RunState
from featurewatch.service.webhooks import logic as webhooks

log = structlog.get_logger("featurewatch.runs")

ATTEMPTS = 3


def create(
    session: Session,
    *,
    family_id: str,
    checkpoint_id: str | None,
    kind: str,
    params: dict[str, Any],
    priority: int = 0,
) -> Run:
    """Queue a run, and ring a bell for it, in the caller's transaction."""
    run = Run(
        family_id=family_id,
        checkpoint_id=checkpoint_id,
        kind=kind,
        params=params,
        priority=priority,
        max_attempts=ATTEMPTS,
        state=RunState.QUEUED,
        created_at=clock.database_now(session),  # its place in the queue, whichever machine created it
        request_id=structlog.contextvars.get_contextvars().get("request_id"),
    )
    session.add(run)
    session.flush()
    _ring(session, run.id)
    return run


def get(session: Session, run_id: str) -> tuple[Run, str, str | None]:
    """A run with the names of its family and checkpoint. NotFoundError."""
    row = queries.by_id(session, run_id)
    if row is None:
        raise NotFoundError(f"There is no run {run_id}.", code="unknown-run")
    return row


def claim(session: Session, *, worker: str, lease_seconds: float, run_id: str | None = None) -> Run | None:
    """Claim the next run: highest priority first, then oldest, and one at a time in a family. None if there is none.

    run_id: the run that a bell named. Only its family is considered, where an older run still goes first: a parent is
    judged before its checkpoints, in whatever order the bells arrive. If an older run belongs to another queue, those
    behind it wait for it.
    """
    named_kind = None if run_id is None else queries.kind(session, run_id)
    busy: set[str] = set()
    candidates = queries.candidates(session, run_id=run_id)
    now = clock.database_now(session)  # after the query: the run before this one in its family has ended by now
    for candidate, family_id, kind in candidates:
        if family_id in busy:
            continue
        if named_kind is not None and queue_of(kind) != queue_of(named_kind):
            return None
        try:
            with session.begin_nested():
                won = queries.take(
                    session, candidate, worker=worker, lease_until=now + timedelta(seconds=lease_seconds), now=now
                )
        except IntegrityError:  # the unique index: another worker has just claimed a run of this family
            won = False
        if won:
            run = session.get_one(Run, candidate, populate_existing=True)
            session.add(Attempt(run_id=run.id, number=run.attempt, worker=worker, started_at=now, usage={}))
            return run
        busy.add(family_id)
    return None


def block_claims(session: Session, family_id: str) -> bool:
    """Block claims of a family's runs until the transaction ends. False if one of them is active.

    A placeholder in the index of one active run per family makes claims wait.
    """
    try:
        with session.begin_nested():
            placeholder = Run(family_id=family_id, kind="none", state=RunState.RUNNING)
            session.add(placeholder)
            session.flush()
            session.delete(placeholder)
    except IntegrityError:
        return False
    return True


def heartbeat(
    session: Session,
    *,
    run_id: str,
    attempt: int,
    lease_seconds: float,
    stage: str | None,
    progress: float,
    detail: dict[str, Any],
    seconds: dict[str, float],
    usage: dict[str, Any] | None = None,
) -> RunState | None:
    """Renew the lease and write the progress. Returns the run's state, or None if the fence is lost."""
    now = clock.database_now(session)
    return queries.renew(
        session,
        run_id=run_id,
        attempt=attempt,
        now=now,
        lease_until=now + timedelta(seconds=lease_seconds),
        stage=stage,
        progress=progress,
        # Postgres rejects NaN in JSON: every heartbeat would fail until the lease expired.
        detail=webhooks.plain(detail),
        seconds=seconds,
        **({} if usage is None else {"usage": usage}),
    )


def gives_way(session: Session, *, family_id: str, priority: int) -> bool:
    """Whether a background run (priority below 0) must let another run of its family go first."""
    return priority < 0 and queries.waits_before(session, family_id, priority)


def hold(session: Session, *, run_id: str, attempt: int, lease_seconds: float) -> RunState | None:
    """Renew only the lease, which fences a worker's transaction. None if the fence is lost."""
    now = clock.database_now(session)
    return queries.renew(
        session, run_id=run_id, attempt=attempt, now=now, lease_until=now + timedelta(seconds=lease_seconds)
    )


def finish(
    session: Session,
    *,
    run_id: str,
    attempt: int,
    state: RunState,
    result: dict[str, Any] | None = None,
    error: dict[str, Any] | None = None,
    seconds: dict[str, float] | None = None,
    usage: dict[str, Any] | None = None,
) -> bool:
    """End a run that the caller holds. False, and nothing is written, if the fence is lost or its state forbids it."""
    if state not in FINAL:
        raise ValueError(f"{state} is not a final state")
    values: dict[str, Any] = {"result": webhooks.plain(result), "error": webhooks.plain(error)}
    values |= {name: value for name, value in (("seconds", seconds), ("usage", usage)) if value is not None}
    if state is RunState.SUCCEEDED:
        values |= {"progress": 1.0, "stage": None}
    now = clock.database_now(session)
    if not queries.move(session, run_id, new=state, now=now, attempt=attempt, **values, **_at_rest(now)):
        return False
    run = session.get_one(Run, run_id, populate_existing=True)
    queries.end_attempt(session, run, now=now, error=run.error)
    _ended(session, run)
    return True


def release(session: Session, *, run_id: str, attempt: int, error: dict[str, Any], counted: bool) -> RunState | None:
    """Return a run that its worker cannot finish. Returns its new state, or None if the fence is lost.

    counted: the attempt counts, and the last one fails the run with `error`. A worker that stops for a deployment has
    not failed: the run keeps its attempt.
    """
    now = clock.database_now(session)
    for _ in range(3):  # a cancel request may arrive between the read and the write
        run = session.get(Run, run_id, populate_existing=True)
        if run is None or run.attempt != attempt or run.state not in ACTIVE:
            return None
        state = _give_back(session, run, error=error, counted=counted, now=now)
        if state is not None:
            return state
    return None


def request_cancel(session: Session, run: Run) -> None:
    """Cancel a queued run, or ask the worker of a running one to stop. ConflictError if it has ended."""
    now = clock.database_now(session)
    for _ in range(5):  # a worker may claim or end the run between the read and the write
        if run.state in FINAL:
            raise ConflictError(f"Run {run.id} has already ended: {run.state}.", code="run-ended")
        if run.state == RunState.CANCELLING:
            return
        if run.state == RunState.QUEUED:
            done = queries.move(
                session, run.id, new=RunState.CANCELLED, now=now, expected=RunState.QUEUED, **_at_rest(now)
            )
        else:
            done = queries.move(session, run.id, new=RunState.CANCELLING, now=now, expected=RunState.RUNNING)
        session.refresh(run)
        if done:
            if run.state == RunState.CANCELLED:
                _ended(session, run)
            return
    raise ConflictError(f"Run {run.id} keeps changing. Try again.", code="run-busy")


def retry(session: Session, run: Run) -> None:
    """Queue a failed or cancelled run again, with a full set of attempts. ConflictError in any other state."""
    now = clock.database_now(session)
    moved = run.state in (RunState.FAILED, RunState.CANCELLED) and queries.move(
        session,
        run.id,
        new=RunState.QUEUED,
        now=now,
        expected=RunState(run.state),
        max_attempts=run.attempt + ATTEMPTS,
        error=None,
        stage=None,
        progress=0.0,
        detail={},
        worker=None,
        lease_until=None,
        finished_at=None,
    )
    session.refresh(run)
    if not moved:
        raise ConflictError(f"Run {run.id} is {run.state}. Only a failed or cancelled run can be retried.")
    queries.set_checkpoint_state(session, run.checkpoint_id, old="failed", new="registered")
    _ring(session, run.id)


def require_idle(session: Session, family_id: str) -> None:
    """Block claims of a family's runs until the transaction ends. ConflictError if one of them is active."""
    if not block_claims(session, family_id):
        run = queries.active(session, family_id)
        name = f"The run {run.id} ({run.kind})" if run else "A run of the family"
        raise _active(f"{name} is in progress. Cancel it or wait until it ends, then try again.", run)


def cancel_all(session: Session, unfinished: Iterable[Run]) -> None:
    """Cancel queued runs, and ask the workers of running ones to stop."""
    for run in unfinished:
        request_cancel(session, run)


def delete(session: Session, run: Run) -> None:
    """Delete a run with its attempts and log. ConflictError if it has not ended."""
    if not queries.remove(session, Run.id == run.id):
        raise _active(f"The run {run.id} is {run.state}. Cancel it or wait until it ends, then delete it.", run)


def _active(detail: str, run: Run | None) -> ConflictError:
    return ConflictError(detail, code="run-active", title="A run is in progress", run=run.id if run else None)


def reap(session: Session, now: datetime) -> list[str]:
    """Requeue runs whose lease expired, or fail those without attempts left. Returns their ids."""
    reaped = []
    for run in queries.stale(session, now):
        error = {
            "code": "worker-lost",
            "title": "The worker stopped responding",
            "detail": f"Worker {run.worker} did not renew its lease in attempt {run.attempt} of {run.max_attempts}"
            + (f", stage {run.stage}." if run.stage else "."),
        }
        state = _give_back(session, run, error=error, counted=True, now=now, lease_before=now)
        if state is not None:
            log.warning("reaped a run", run=run.id, attempt=run.attempt, became=state)
            note(session, run.id, "error", "the worker stopped responding", {"detail": error["detail"]})
            reaped.append(run.id)
    return reaped


def note(session: Session, run_id: str, level: str, event: str, fields: dict[str, Any]) -> None:
    """Add a log line on behalf of a worker, in the transaction that has just ended its attempt."""
    run = session.get_one(Run, run_id, populate_existing=True)
    line = lines.Line(run.lines + 1, clock.database_now(session), level, event, fields)
    lines.keep(session, run_id=run_id, attempt=run.attempt, lines=[line])


def _give_back(
    session: Session,
    run: Run,
    *,
    error: dict[str, Any],
    counted: bool,
    now: datetime,
    lease_before: datetime | None = None,
) -> RunState | None:
    """End an attempt without a result: requeue the run, or end it if it is cancelled or has no attempts left."""
    values: dict[str, Any] = _at_rest(now)
    if run.state == RunState.CANCELLING:
        new = RunState.CANCELLED
    elif counted and run.attempt >= run.max_attempts:
        new = RunState.FAILED
        values["error"] = error
    else:
        new = RunState.QUEUED
        values |= {"error": error if counted else None, "finished_at": None}
        if not counted:
            # The attempt number itself is the fence against the leaving worker, so it stays.
            values["max_attempts"] = run.max_attempts + 1
    moved = queries.move(
        session,
        run.id,
        new=new,
        now=now,
        attempt=run.attempt,
        expected=RunState(run.state),
        lease_before=lease_before,
        **values,
    )
    if not moved:
        return None
    session.refresh(run)
    queries.end_attempt(session, run, now=now, error=error)
    if new is RunState.QUEUED:
        _ring(session, run.id)
    else:
        _ended(session, run)
    return new


def _ended(session: Session, run: Run) -> None:
    """What follows the end of a run: the state of its checkpoint, the event, and a bell for the family's next run."""
    if run.state in (RunState.FAILED, RunState.CANCELLED):
        queries.set_checkpoint_state(session, run.checkpoint_id, old="registered", new="failed")
    if run.state == RunState.FAILED:
        checkpoint = session.get_one(Checkpoint, run.checkpoint_id).name if run.checkpoint_id else None
        webhooks.emit(
            session,
            type="run.failed",
            family_id=run.family_id,
            data={
                "run": run.id,
                "family": session.get_one(Family, run.family_id).name,
                "checkpoint": checkpoint,
                "kind": run.kind,
                "attempt": run.attempt,
                "error": run.error,
            },
            key=f"{run.id}:{run.attempt}",
        )
    following = queries.next_in_line(session, run.family_id)
    if following is not None:
        _ring(session, following)


def _ring(session: Session, run_id: str) -> None:
    session.add(Bell(run_id=run_id))
    session.flush()


def _at_rest(now: datetime) -> dict[str, Any]:
    return {"worker": None, "lease_until": None, "finished_at": now}
