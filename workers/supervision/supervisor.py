"""The supervisor: a process that no library can freeze, because it does no work itself.

A child does the work (see `process` and `child`). It stays between runs, so that torch is imported once. The supervisor
kills it and everything it has started if a run

- gives no sign of life for as long as a lease, for example in C code that holds the GIL,
- does not reach a check within the grace period after it timed out, was cancelled or was taken over,
- does not stop soon after the worker was asked to,

and writes the end of the run through the same fence as the child would have. The next job gets a new child.
"""

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy.orm import Session

from featurewatch.service.config import Settings
from featurewatch.service.kit import telemetry
from featurewatch.service.kit.db import AWAY, Database
from featurewatch.service.runs import logic, queries
from featurewatch.service.runs.states import RunState
from featurewatch.workers.errors import RunError, TooLongError
from featurewatch.workers.execution.lease import write_end
from featurewatch.workers.runner import worker_name
from featurewatch.workers.supervision.process import WorkingProcess

log = structlog.get_logger("featurewatch.worker")

WAKE_SECONDS = 0.2
LOOK_SECONDS = 1.0
"""Seconds between checks that the run has not been cancelled or taken over."""
SILENT_SECONDS = 0.8
"""Longer than the pause between two signs of life."""
STOP_SECONDS = 5.0
"""A run that has not stopped this long after the worker was asked to is killed: containers get 10 s in all."""
FROZEN_SECONDS = 2.0
"""Without a sign of life in that time it will not stop, so it is killed this early."""
END_SECONDS = 1.0


class JobError(RuntimeError):
    """A job failed without a run to record it in: the database was unavailable, or the child ended before a claim."""


@dataclass
class Job:
    """What the child is doing, by this process's clock. Times are `time.monotonic()`."""

    woke: float
    """When this process last ran."""
    silent: float = 0.0
    """Seconds since its last sign of life, excluding time when this process was frozen too."""
    run_id: str | None = None
    attempt: int = 0
    began: float = 0.0
    looked: float = 0.0
    unwanted: float | None = None
    """Since when the run has been cancelled, or no longer belongs to this worker."""
    stopping: float | None = None
    """When it was asked to stop."""


class Supervisor:
    """One child and its work, one job at a time."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        pipelines: str | None = None,
        stopping: Callable[[], bool],
    ) -> None:
        """`pipelines`: as in WorkingProcess. `stopping`: whether this process was asked to end."""
        self.settings, self.database, self.pipelines, self.stopping = settings, database, pipelines, stopping
        self.name = worker_name()
        self._process: WorkingProcess | None = None
        self._job: Job | None = None
        self._turn = threading.Lock()

    def has_work(self) -> bool:
        """Whether a run is waiting that could be claimed."""
        with self.database.read() as session:
            return bool(queries.candidates(session, run_id=None))

    def run_next(self, run_id: str | None = None) -> str | None:
        """`runner.run_next` in the child. Raises JobError."""
        result = self._do({"do": "run", "run": run_id})
        return None if result is None else str(result)

    def help_others(self) -> int:
        """`runner.help_others` in the child. Raises JobError."""
        return int(self._do({"do": "help"}) or 0)

    def stuck(self) -> bool:
        """Whether the child is halfway to a limit after which it is killed. From any thread."""
        job = self._job
        return job is not None and any(spent > allowed / 2 for spent, allowed, _ in self._limits(job))

    def hold(self) -> None:
        """Renew the lease of a run whose child gives no sign of life, so that nobody takes it over before it is killed.

        Call from another thread: a child that froze in a transaction may hold the database's lock.
        """
        job = self._job
        if job is None or job.run_id is None or job.silent < SILENT_SECONDS:
            return
        with self.database.write() as session:
            logic.hold(session, run_id=job.run_id, attempt=job.attempt, lease_seconds=self.settings.lease_seconds)

    def close(self) -> None:
        if self._process is not None:
            self._process.end(END_SECONDS)
            self._process = None

    def _do(self, task: dict[str, Any]) -> Any:
        with self._turn:
            if self.stopping():
                return None
            if self._process is not None and self._process.ended():  # while idle
                log.warning("the working process ended", status=self._process.kill())
                self._process = None
            process = self._process = self._process or WorkingProcess(self.pipelines)
            job = self._job = Job(woke=time.monotonic())
            try:
                process.send(task | {"trace": telemetry.trace_headers()})
                return self._watch(process, job)
            except EOFError:
                return self._kill(process, job, None)
            finally:
                self._job = None

    def _watch(self, process: WorkingProcess, job: Job) -> Any:
        """The result of the job. EOFError if the child ended."""
        while True:
            for message in process.messages(WAKE_SECONDS):
                job.silent = 0.0
                if "run" in message:
                    job.run_id, job.attempt, job.began = message["run"], message["attempt"], time.monotonic()
                elif "done" in message:
                    return message["done"]
                elif "failed" in message:
                    raise JobError(message["failed"])
            now = time.monotonic()
            if process.ready:  # before that it is importing, and holds nothing
                job.silent += min(now - job.woke, LOOK_SECONDS)
            job.woke = now
            if self.stopping():
                if job.stopping is None:
                    job.stopping, job.silent = now, 0.0
                    process.terminate()
                if now - job.stopping > STOP_SECONDS or job.silent > FROZEN_SECONDS:
                    return self._kill(process, job, _InterruptedError())
            self._look(job)
            for spent, allowed, fault in self._limits(job):
                if spent > allowed:
                    return self._kill(process, job, fault)

    def _limits(self, job: Job) -> list[tuple[float, float, RunError]]:
        """(seconds spent, seconds allowed, fault if exceeded) of each limit that applies."""
        now, settings = time.monotonic(), self.settings
        silence = _stuck(f"gave no sign of life for {settings.lease_seconds:g} s")
        limits: list[tuple[float, float, RunError]] = [(job.silent, settings.lease_seconds, silence)]
        if job.run_id and settings.run_seconds:
            overtime = now - job.began - settings.run_seconds
            limits.append((overtime, settings.run_grace_seconds, TooLongError(settings.run_seconds)))
        if job.unwanted is not None:
            fault = _stuck(f"did not stop within {settings.run_grace_seconds:g} s of being asked to")
            limits.append((now - job.unwanted, settings.run_grace_seconds, fault))
        return limits

    def _look(self, job: Job) -> None:
        """Check that the run is still wanted. The child's heartbeat does so too, unless it is frozen."""
        if job.run_id is None or time.monotonic() - job.looked < LOOK_SECONDS:
            return
        job.looked = time.monotonic()
        try:
            with self.database.read() as session:
                wanted = queries.state(session, job.run_id, job.attempt) == RunState.RUNNING
        except AWAY as error:
            log.warning("the database is unavailable", run=job.run_id, error=str(error.orig))
            return
        if wanted:
            job.unwanted = None
        elif job.unwanted is None:
            job.unwanted = time.monotonic()

    def _kill(self, process: WorkingProcess, job: Job, fault: RunError | None) -> str | None:
        """Kill the child, or what is left of one that ended (`fault` None). Ends its run, and returns the run's id."""
        self._process = None
        status = process.kill()
        fault = fault or _lost(status)
        log.error("killed the working process", run=job.run_id, code=fault.code, detail=fault.detail, status=status)
        if job.run_id is None:
            if self.stopping():
                return None
            raise JobError(fault.detail)
        deadline = time.monotonic() + (END_SECONDS if self.stopping() else self.settings.lease_seconds)
        state = write_end(
            self.database.write, lambda session: _give_up(session, job, fault), lambda: deadline - time.monotonic()
        )
        log.warning("ended the run of a killed process", run=job.run_id, attempt=job.attempt, state=state)
        return job.run_id


class _InterruptedError(RunError):
    def __init__(self) -> None:
        super().__init__("interrupted", "The worker was stopped.", title="The worker was stopped")


def _give_up(session: Session, job: Job, fault: RunError) -> RunState | None:
    """End the run, or give it back. Its new state, or None if this worker no longer holds it."""
    assert job.run_id is not None
    error, state = fault.as_dict(), None
    if isinstance(fault, TooLongError):
        if logic.finish(session, run_id=job.run_id, attempt=job.attempt, state=RunState.FAILED, error=error):
            state = RunState.FAILED
    else:
        counted = not isinstance(fault, _InterruptedError)
        state = logic.release(session, run_id=job.run_id, attempt=job.attempt, error=error, counted=counted)
    if state is not None:
        logic.note(session, job.run_id, "error", "the working process was killed", error)
    return state


def _stuck(what: str) -> RunError:
    return RunError(
        "worker-stuck",
        f"The process that executed the run {what} and was killed. Finished stages are kept.",
        title="The worker was stuck",
    )


def _lost(status: int | None) -> RunError:
    how = f"with status {status}" if status is None or status >= 0 else f"by {signal.Signals(-status).name}"
    return RunError(
        "worker-lost",
        f"The process that executed the run ended {how}. The kernel often sends SIGKILL when memory runs out.",
        title="The worker's process ended",
    )
