"""One run, from claim to end: claim -> heartbeat -> execute -> fenced finish.

The database is the truth. The worker holds a run by its attempt number and a lease that a thread renews; every write
names the attempt, so a worker that lost its run (it was paused, or cut off) writes nothing any more. Doorbells,
embedded or Celery, only decide when `run_next` is called.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import structlog
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from service.config import Settings
from service.kit.artifacts import ArtifactStore
from service.kit.db import Database
from service.models import Run
from service.runs import logic
from service.runs.states import RunState
from workers.errors import LeaseLostError, RunCancelledError, RunError, WorkerStoppingError

log = structlog.get_logger("featurewatch.worker")

Pipeline = Callable[["Execution"], None]
Answer = TypeVar("Answer")

AWAY = (OperationalError, InterfaceError)
"""What the driver raises when the database cannot be reached, or drops the connection."""

BEAT_SECONDS = 0.5
QUIET_BEAT_SECONDS = 2.0
RETRY_SECONDS = 0.5
_NEVER = threading.Event()


class Execution:
    """A claimed run, as its pipeline sees it."""

    def __init__(
        self, run: Run, *, settings: Settings, database: Database, artifacts: ArtifactStore, stop: Callable[[], bool]
    ) -> None:
        self.run_id, self.kind, self.attempt = run.id, run.kind, run.attempt
        self.family_id, self.checkpoint_id = run.family_id, run.checkpoint_id
        self.params: dict[str, Any] = dict(run.params)
        self.settings, self.database, self.artifacts = settings, database, artifacts
        self._stop = stop
        self._lock = threading.Lock()
        self._stage: str | None = None
        self._stage_began = 0.0
        self._progress, self._detail = 0.0, dict[str, Any]()
        self._seconds: dict[str, float] = dict(run.seconds)
        self._lease_until = time.monotonic() + settings.lease_seconds
        self._cancelling = self._lost = self._writing = self._finishing = False
        self.finished = False
        """Whether the transaction that `finish` was part of has committed."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A part of the run: shown while it lasts, its seconds are kept. Raises what `check` raises."""
        self.check()
        with self._lock:
            outer = (self._stage, self._stage_began, self._progress, self._detail)
            self._stage, self._stage_began, self._progress, self._detail = name, time.monotonic(), 0.0, {}
        log.info("stage", run=self.run_id, stage=name)
        try:
            yield
        finally:
            with self._lock:
                self._seconds = self._seconds_now()
                self._stage, self._stage_began, self._progress, self._detail = outer

    def progress(self, fraction: float, /, **detail: Any) -> None:
        """How far the stage is (0 to 1), and what it has to say. Cheap, from any thread; the heartbeat writes it."""
        with self._lock:
            self._progress = min(max(float(fraction), 0.0), 1.0)
            if detail:
                self._detail = detail

    def check(self) -> None:
        """Stop here if the run is not to go on: LeaseLostError, RunCancelledError, or WorkerStoppingError."""
        # Inside a `write()` the run's row is locked: no beat gets through, but nobody else either.
        if self._lost or (self.lease_left() <= 0 and not self._writing):
            raise LeaseLostError(f"run {self.run_id} is not held by attempt {self.attempt} any more")
        if self._cancelling:
            raise RunCancelledError(f"run {self.run_id} was cancelled")
        if self._stop():
            raise WorkerStoppingError("the worker was told to end")

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that only reads. It waits for a database that is away, as long as the lease lasts."""
        with self._patiently(self.database.read, lambda session: session.connection()) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that counts only while this attempt holds the run; LeaseLostError where it does not.

        The run's row stays locked until the end: nobody can take the run over while the transaction is open.
        """
        try:
            with self._patiently(self.database.write, self._hold) as session:
                self._writing = True
                yield session
                began = time.monotonic()
                if not self._finishing:
                    self._hold(session)  # the lease counts from the commit, however long the body took
            self._lease_until = began + self.settings.lease_seconds
            self.finished = self._finishing
        finally:
            self._writing = False
            self._finishing = self.finished

    def finish(self, session: Session, result: dict[str, Any]) -> None:
        """Inside a `write()`, as its last act: the run has succeeded if and only if that transaction commits."""
        with self._lock:
            seconds = self._seconds_now()
        # From here on the heartbeat may find the run ended, by us.
        self._finishing = True
        done = logic.finish(
            session,
            run_id=self.run_id,
            attempt=self.attempt,
            state=RunState.SUCCEEDED,
            result=result,
            seconds=seconds,
        )
        if not done:
            raise LeaseLostError(f"run {self.run_id} ended before attempt {self.attempt} finished it")

    def beat(self) -> bool:
        """Renew the lease, write the progress and see what was asked for; whether beats are still wanted."""
        with self._lock:
            stage, progress, detail, seconds = self._stage, self._progress, self._detail, dict(self._seconds)
        began = time.monotonic()
        with self.database.write() as session:
            state = logic.heartbeat(
                session,
                run_id=self.run_id,
                attempt=self.attempt,
                lease_seconds=self.settings.lease_seconds,
                stage=stage,
                progress=progress,
                detail=detail,
                seconds=seconds,
            )
        if state is None:
            self._lost = not self._finishing
            return False
        self._lease_until = began + self.settings.lease_seconds
        self._cancelling = state is RunState.CANCELLING
        return True

    def snapshot(self) -> tuple[Any, ...]:
        """What a beat would write; the same twice: nothing new to tell."""
        with self._lock:
            return self._stage, self._progress, tuple(sorted(self._detail)), tuple(map(str, self._detail.values()))

    def seconds(self) -> dict[str, float]:
        """Stage -> seconds until now, the running stage with them."""
        with self._lock:
            return self._seconds_now()

    def lease_left(self) -> float:
        """Seconds until the lease is over, as far as this worker knows."""
        return self._lease_until - time.monotonic()

    def lose(self) -> None:
        """Give the run up: its lease is over."""
        self._lost = not self._finishing

    def _seconds_now(self) -> dict[str, float]:
        if self._stage is None:
            return dict(self._seconds)
        spent = time.monotonic() - self._stage_began
        return self._seconds | {self._stage: round(self._seconds.get(self._stage, 0.0) + spent, 3)}

    def _hold(self, session: Session) -> None:
        held = logic.hold(session, run_id=self.run_id, attempt=self.attempt, lease_seconds=self.settings.lease_seconds)
        if held is None:
            self._lost = True
            raise LeaseLostError(f"run {self.run_id} is not held by attempt {self.attempt} any more")

    @contextmanager
    def _patiently(
        self, opening: Callable[[], AbstractContextManager[Session]], first: Callable[[Session], Any]
    ) -> Iterator[Session]:
        """A session whose first statement went through. Later statements are not repeated: they may have happened."""
        while True:
            manager = opening()
            session = manager.__enter__()
            try:
                first(session)
            except AWAY as error:
                manager.__exit__(type(error), error, error.__traceback__)
                if self.lease_left() <= RETRY_SECONDS:
                    raise
                log.warning("the database is away", run=self.run_id, error=str(error.orig))
                time.sleep(RETRY_SECONDS)
            except BaseException as error:
                manager.__exit__(type(error), error, error.__traceback__)
                raise
            else:
                break
        try:
            yield session
        except BaseException as error:
            if not manager.__exit__(type(error), error, error.__traceback__):
                raise
        else:
            manager.__exit__(None, None, None)


class Heart(threading.Thread):
    """Beats for one execution until it is stopped, the run is lost, or the run has ended."""

    def __init__(self, execution: Execution) -> None:
        super().__init__(name=f"heartbeat-{execution.run_id}", daemon=True)
        self.execution = execution
        self._stopped = threading.Event()
        self._longest = min(QUIET_BEAT_SECONDS, execution.settings.lease_seconds / 3)

    def run(self) -> None:
        told, spoke = self.execution.snapshot(), time.monotonic()
        step = min(BEAT_SECONDS, self._longest)
        while not self._stopped.wait(step):
            news = self.execution.snapshot()
            if news == told and time.monotonic() - spoke + step / 2 < self._longest:
                continue
            try:
                if not self.execution.beat():
                    return
            except Exception as error:  # noqa: BLE001 - whatever it is, the next beat may succeed
                if self.execution.lease_left() <= 0:
                    log.error("the lease ran out", run=self.execution.run_id, error=str(error))
                    self.execution.lose()
                    return
                log.warning("missed a beat", run=self.execution.run_id, error=str(error))
                continue
            told, spoke = news, time.monotonic()

    def stop(self) -> None:
        """Stop beating, and wait for a beat that is under way."""
        self._stopped.set()
        self.join()


def worker_name() -> str:
    """Name of this process in the `run` table."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:6]}"


def run_next(
    *,
    settings: Settings,
    database: Database,
    artifacts: ArtifactStore,
    run_id: str | None = None,
    worker: str | None = None,
    pipelines: Mapping[str, Pipeline] | None = None,
    stop: Callable[[], bool] = _NEVER.is_set,
) -> str | None:
    """Claim the run whose turn it is and take it to an end. Its id; None where there was nothing to do.

    `run_id` is what a bell said; `pipelines` defaults to the real ones; `stop` says that this process is to end,
    which puts the run back into the queue at its next check.
    """
    with database.write() as session:
        run = logic.claim(session, worker=worker or worker_name(), lease_seconds=settings.lease_seconds, run_id=run_id)
    if run is None:
        return None
    execution = Execution(run, settings=settings, database=database, artifacts=artifacts, stop=stop)
    with structlog.contextvars.bound_contextvars(run=run.id, attempt=run.attempt):
        log.info("claimed", kind=run.kind)
        heart = Heart(execution)
        heart.start()
        try:
            _execute(execution, pipelines)
        finally:
            heart.stop()
    return run.id


def _execute(execution: Execution, pipelines: Mapping[str, Pipeline] | None) -> None:
    """Run the pipeline, and write down how it ended."""
    try:
        _pipeline(execution, pipelines)(execution)
        if not execution.finished:
            with execution.write() as session:
                execution.finish(session, {})
        log.info("succeeded", seconds=execution.seconds())
    except LeaseLostError as error:
        log.warning("lost", reason=str(error))
    except RunCancelledError:
        log.info("cancelled")
        _end(execution, RunState.CANCELLED)
    except RunError as error:
        log.warning("failed", **error.as_dict())
        _end(execution, RunState.FAILED, error.as_dict())
    except AWAY as error:
        log.exception("interrupted by the database")
        _give_back(execution, _interrupted("The database was away", str(error.orig)), counted=True)
    except (WorkerStoppingError, SystemExit, KeyboardInterrupt) as error:
        log.info("stopping")
        _give_back(execution, _interrupted("The worker was stopped", type(error).__name__), counted=False)
        if not isinstance(error, WorkerStoppingError):
            raise
    except Exception as error:
        log.exception("failed")
        title, detail = "Something went wrong in the worker", f"{type(error).__name__}: {error}"
        _end(execution, RunState.FAILED, {"code": "internal", "title": title, "detail": detail[:4000]})


def _pipeline(execution: Execution, pipelines: Mapping[str, Pipeline] | None) -> Pipeline:
    if pipelines is None:
        # Here and not above: it loads torch, which takes seconds, and the heart is beating by now.
        from workers.pipelines import PIPELINES  # noqa: PLC0415

        pipelines = PIPELINES
    try:
        return pipelines[execution.kind]
    except KeyError:
        raise RunError("unknown_kind", f"This worker knows no runs of the kind {execution.kind!r}.") from None


def _end(execution: Execution, state: RunState, error: dict[str, Any] | None = None) -> None:
    def act(session: Session) -> bool:
        return logic.finish(
            session,
            run_id=execution.run_id,
            attempt=execution.attempt,
            state=state,
            error=error,
            seconds=execution.seconds(),
        )

    if not _insist(execution, act):
        log.warning("lost before its end was written", wanted=state)


def _give_back(execution: Execution, error: dict[str, Any], *, counted: bool) -> None:
    def act(session: Session) -> RunState | None:
        return logic.release(session, run_id=execution.run_id, attempt=execution.attempt, error=error, counted=counted)

    log.info("given back", became=_insist(execution, act))


def _insist(execution: Execution, act: Callable[[Session], Answer]) -> Answer | None:
    """Write an end although the database may be away for a moment; after the lease the reaper does it."""
    while True:
        try:
            with execution.database.write() as session:
                return act(session)
        except AWAY as error:
            if execution.lease_left() <= 0:
                log.error("the end could not be written; the lease will run out", error=str(error.orig))
                return None
            time.sleep(RETRY_SECONDS)


def _interrupted(title: str, detail: str) -> dict[str, Any]:
    return {"code": "interrupted", "title": title, "detail": detail[:1000]}
