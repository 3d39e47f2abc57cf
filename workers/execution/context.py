"""A claimed run, as its pipeline sees it."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import structlog
from sqlalchemy.orm import Session

from featurewatch.service.config import Settings
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.db import Database
from featurewatch.service.models import Run
from featurewatch.service.runs import lines, logic
from featurewatch.service.runs.states import RunState
from featurewatch.workers.errors import GivingWayError, LeaseLostError, TooLongError, WorkerStoppingError
from featurewatch.workers.execution.lease import RunLease
from featurewatch.workers.execution.log_lines import LogLines
from featurewatch.workers.execution.progress import Progress
from featurewatch.workers.execution.usage import Usage

log = structlog.get_logger("featurewatch.worker")


class Execution:
    """One attempt at a run: its parameters, stages and progress, fenced sessions, and whether it may go on."""

    def __init__(
        self, run: Run, *, settings: Settings, database: Database, artifacts: ArtifactStore, stop: Callable[[], bool]
    ) -> None:
        """`stop`: whether the worker was asked to stop."""
        self.run_id, self.kind, self.attempt = run.id, run.kind, run.attempt
        self.family_id, self.checkpoint_id = run.family_id, run.checkpoint_id
        self.params: dict[str, Any] = dict(run.params)
        self.settings, self.database, self.artifacts = settings, database, artifacts
        self.lease = RunLease(run, settings, database)
        self.lines = LogLines(settings, run.lines)
        """What was logged about the run and is not in the database yet"""
        self._progress = Progress(run.seconds)
        self._usage = Usage()
        self._began = time.monotonic()
        self._stop = stop

    @property
    def finished(self) -> bool:
        """Whether the transaction that `finish` was part of has committed."""
        return self.lease.finished

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A named part of the run: shown while it lasts, timed, and logged. Raises what `check` raises."""
        self.check()
        with self._progress.entered(name):
            log.info("stage", run=self.run_id, stage=name)
            yield

    def progress(self, fraction: float, /, **detail: Any) -> None:
        """Report how far the stage is, from 0 to 1. Cheap, and from any thread: the heartbeat writes it."""
        self._progress.report(fraction, detail)

    def check(self) -> None:
        """Stop here if the run must not go on.

        Raises LeaseLostError, RunCancelledError, TooLongError, WorkerStoppingError or GivingWayError.
        """
        self.lease.check_held()
        allowed = self.settings.run_seconds
        if allowed and time.monotonic() - self._began > allowed:
            raise TooLongError(allowed)
        if self._stop():
            raise WorkerStoppingError("the worker was asked to stop")
        if self.lease.gives_way:
            raise GivingWayError("yielding to another run of the family")

    def read(self) -> AbstractContextManager[Session]:
        """A session that only reads, as of `RunLease.read`."""
        return self.lease.read()

    def write(self) -> AbstractContextManager[Session]:
        """A transaction that commits only while this attempt holds the run, as of `RunLease.write`."""
        return self.lease.write()

    def finish(self, session: Session, result: dict[str, Any]) -> None:
        """The last act of a `write()`: the run succeeds if and only if that transaction commits."""
        self.lease.finishing = True
        if not self.end(session, RunState.SUCCEEDED, result=result):
            raise LeaseLostError(f"run {self.run_id} ended before attempt {self.attempt} could finish it")

    def end(
        self,
        session: Session,
        state: RunState,
        *,
        result: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
    ) -> bool:
        """Write how the run ended, with its cost and log. False if this attempt does not hold the run."""
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
            self._store(session, self.lines.ending(seconds=self.seconds()) if succeeded else self.lines.waiting())
        return held

    def release(self, session: Session, error: dict[str, Any], *, counted: bool) -> RunState | None:
        """Give the run back. Returns its new state, or None if this attempt does not hold it."""
        state = logic.release(session, run_id=self.run_id, attempt=self.attempt, error=error, counted=counted)
        if state is not None:
            self._store(session, self.lines.waiting())
        return state

    def beat(self) -> bool:
        """Renew the lease, write progress and log, and learn of requests. False once no more beats are needed."""
        columns, waiting, began = self._progress.columns(), self.lines.waiting(), time.monotonic()
        with self.database.write() as session:
            state = self.lease.heartbeat(session, **columns, usage=self.usage())
            if state is not None:
                self._store(session, waiting)
        if state is None:
            self.lose()
            return False
        self.lines.written(waiting)
        self.lease.renew(began)
        self.lease.cancelling = state is RunState.CANCELLING
        return True

    def snapshot(self) -> tuple[Any, ...]:
        columns = self._progress.columns()
        detail = tuple(sorted(columns["detail"])), tuple(map(str, columns["detail"].values()))
        return columns["stage"], columns["progress"], *detail, self.lines.last

    def seconds(self) -> dict[str, float]:
        """Seconds by stage so far, including the current one."""
        return self._progress.seconds()

    def usage(self) -> dict[str, Any]:
        """What this attempt has cost so far."""
        return self._usage.now(self._progress.rates)

    def left(self) -> float:
        return self.lease.left()

    def lose(self) -> None:
        """Give the run up: its lease has ended."""
        self.lease.lose()

    def _store(self, session: Session, log_lines: list[lines.Line]) -> None:
        # Only in a transaction that has changed the run's row as its holder: who lost the run adds nothing.
        lines.keep(session, run_id=self.run_id, attempt=self.attempt, lines=log_lines)
