"""What a pipeline holds of its run: stages, progress, fenced sessions, and whether it may go on."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import structlog
from sqlalchemy.orm import Session

from featurewatch.service.config import Settings
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.db import AWAY, Database
from featurewatch.service.models import Run
from featurewatch.service.runs import lines, logic
from featurewatch.service.runs.states import RunState
from featurewatch.workers.errors import (
    GivingWayError,
    LeaseLostError,
    RunCancelledError,
    TooLongError,
    WorkerStoppingError,
)
from featurewatch.workers.lines import Lines
from featurewatch.workers.usage import Usage

log = structlog.get_logger("featurewatch.worker")

RETRY_SECONDS = 0.5


class Execution:
    """A claimed run, as its pipeline sees it."""

    def __init__(
        self, run: Run, *, settings: Settings, database: Database, artifacts: ArtifactStore, stop: Callable[[], bool]
    ) -> None:
        self.run_id, self.kind, self.attempt, self.priority = run.id, run.kind, run.attempt, run.priority
        self.family_id, self.checkpoint_id = run.family_id, run.checkpoint_id
        self.params: dict[str, Any] = dict(run.params)
        self.settings, self.database, self.artifacts = settings, database, artifacts
        self._stop = stop
        self._lock = threading.Lock()
        self._stage: str | None = None
        self._stage_began = 0.0
        self._progress, self._detail = 0.0, dict[str, Any]()
        self._seconds: dict[str, float] = dict(run.seconds)
        self._began, self._usage = time.monotonic(), Usage()
        self.lines = Lines(settings, run.lines)
        """What was logged of the run and is not in the database yet."""
        self._lease_until = self._began + settings.lease_seconds
        self._cancelling = self._lost = self._writing = self._finishing = self._gives_way = False
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
                if "positions_per_second" in self._detail:
                    self._usage.rates[name] = self._detail["positions_per_second"]
                self._stage, self._stage_began, self._progress, self._detail = outer

    def progress(self, fraction: float, /, **detail: Any) -> None:
        """How far the stage is (0 to 1), and what it has to say. Cheap, from any thread; the heartbeat writes it."""
        with self._lock:
            self._progress = min(max(float(fraction), 0.0), 1.0)
            if detail:
                self._detail = detail

    def check(self) -> None:
        """Stop here if the run is not to go on: LeaseLostError, RunCancelledError, TooLongError, WorkerStoppingError,
        or GivingWayError."""
        # Inside a `write()` the run's row is locked: no beat gets through, but nobody else either.
        if self._lost or (self.lease_left() <= 0 and not self._writing):
            raise LeaseLostError(f"run {self.run_id} is not held by attempt {self.attempt} any more")
        if self._cancelling:
            raise RunCancelledError(f"run {self.run_id} was cancelled")
        if self._overtime() > 0:
            raise TooLongError(self.settings.run_seconds)
        if self._stop():
            raise WorkerStoppingError("the worker was told to end")
        if self._gives_way:
            raise GivingWayError("another run of the family goes first")

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
        # From here on the heartbeat may find the run ended, by us.
        self._finishing = True
        if not self.end(session, RunState.SUCCEEDED, result=result):
            raise LeaseLostError(f"run {self.run_id} ended before attempt {self.attempt} finished it")

    def end(
        self,
        session: Session,
        state: RunState,
        *,
        result: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
    ) -> bool:
        """Write the run's end, what it took and what it logged, in any transaction; False where this attempt does not
        hold it."""
        held = logic.finish(
            session,
            run_id=self.run_id,
            attempt=self.attempt,
            state=state,
            result=result,
            error=error,
            seconds=self.seconds(),
            usage=self.usage(),
        )
        if held:
            succeeded = state is RunState.SUCCEEDED
            self._keep(session, self.lines.ending(seconds=self.seconds()) if succeeded else self.lines.waiting())
        return held

    def release(self, session: Session, error: dict[str, Any], *, counted: bool) -> RunState | None:
        """Give the run back, in any transaction; what it became, None where this attempt does not hold it."""
        became = logic.release(session, run_id=self.run_id, attempt=self.attempt, error=error, counted=counted)
        if became is not None:
            self._keep(session, self.lines.waiting())
        return became

    def beat(self) -> bool:
        """Renew the lease, write progress and log, and see what was asked for; whether beats are still wanted."""
        with self._lock:
            stage, progress, detail, seconds = self._stage, self._progress, self._detail, dict(self._seconds)
        said = self.lines.waiting()
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
                usage=self.usage(),
            )
            if state is not None:
                self._keep(session, said)
            self._gives_way = logic.gives_way(session, family_id=self.family_id, priority=self.priority)
        if state is None:
            self._lost = not self._finishing
            return False
        self.lines.written(said)
        self._lease_until = began + self.settings.lease_seconds
        self._cancelling = state is RunState.CANCELLING
        return True

    def snapshot(self) -> tuple[Any, ...]:
        """What a beat would write; the same twice: nothing new to tell."""
        with self._lock:
            detail = tuple(sorted(self._detail)), tuple(map(str, self._detail.values()))
            return self._stage, self._progress, *detail, self.lines.last

    def seconds(self) -> dict[str, float]:
        """Stage -> seconds until now, the running stage with them."""
        with self._lock:
            return self._seconds_now()

    def usage(self) -> dict[str, Any]:
        """What this attempt has cost until now."""
        return self._usage.now()

    def lease_left(self) -> float:
        """Seconds until the lease is over, as far as this worker knows."""
        return self._lease_until - time.monotonic()

    def lose(self) -> None:
        """Give the run up: its lease is over."""
        self._lost = not self._finishing

    def _overtime(self) -> float:
        """Seconds since this attempt had no time left; negative while it has."""
        allowed = self.settings.run_seconds
        return time.monotonic() - self._began - allowed if allowed else float("-inf")

    def _seconds_now(self) -> dict[str, float]:
        if self._stage is None:
            return dict(self._seconds)
        spent = time.monotonic() - self._stage_began
        return self._seconds | {self._stage: round(self._seconds.get(self._stage, 0.0) + spent, 3)}

    def _keep(self, session: Session, said: list[lines.Line]) -> None:
        # In a transaction that has changed the run's row as its holder: who lost the run adds nothing any more.
        lines.keep(session, run_id=self.run_id, attempt=self.attempt, lines=said)

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
