"""Who watches the work: a process that a library cannot freeze, as it never runs one.

The work is done in a child (see `process` and `child`), which stays between runs, so that torch is loaded once. The
supervisor kills it, with all that it has started, where a run

- gives no sign of life for as long as a lease, as in C code that keeps the GIL,
- takes no step for a grace after its time was over, or after it was cancelled or taken over,
- does not stop soon after the worker was told to end,

and writes the run's end, through the same fence as the child would have. The next job gets a new child.
"""

import os
import signal
import socket
import threading
import time
import uuid
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
from featurewatch.workers.process import WorkingProcess

log = structlog.get_logger("featurewatch.worker")

WAKE_SECONDS = 0.2
LOOK_SECONDS = 1.0
"""How often it looks whether the run is still wanted."""
SILENT_SECONDS = 0.8
"""More than the pause between two signs of life."""
STOP_SECONDS = 5.0
"""A run that has not stopped so long after the worker was told to end is killed: 10 s are what containers get."""
FROZEN_SECONDS = 2.0
"""One that gives no sign of life meanwhile will not stop: it is killed after so long already."""
END_SECONDS = 1.0
RETRY_SECONDS = 0.5


class JobError(RuntimeError):
    """A job could not be done, and no run says why: the database was away, or the process ended without a run."""


@dataclass
class Job:
    """What the child does, by the clock of this process. Times are `time.monotonic()`."""

    woke: float
    """When this process was awake last."""
    silent: float = 0.0
    """Seconds since it gave a sign of life. Those in which this process was frozen too do not count."""
    run_id: str | None = None
    attempt: int = 0
    began: float = 0.0
    looked: float = 0.0
    unwanted: float | None = None
    """Since when the run is to be cancelled, or not this worker's any more."""
    stopping: float | None = None
    """When it was asked to stop."""


class Supervisor:
    """One child and its work, a job at a time."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        pipelines: str | None = None,
        stopping: Callable[[], bool],
    ) -> None:
        """`pipelines` as of WorkingProcess. `stopping`: whether this process was told to end."""
        self.settings, self.database, self.pipelines, self.stopping = settings, database, pipelines, stopping
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:6]}"
        self._process: WorkingProcess | None = None
        self._job: Job | None = None
        self._turn = threading.Lock()

    def waits(self) -> bool:
        """Whether a run waits that could be taken."""
        with self.database.read() as session:
            return bool(queries.candidates(session, run_id=None))

    def run_next(self, run_id: str | None = None) -> str | None:
        """As `runner.run_next`. JobError."""
        result = self._do({"do": "run", "run": run_id})
        return None if result is None else str(result)

    def help_others(self) -> int:
        """As `runner.help_others`. JobError."""
        return int(self._do({"do": "help"}) or 0)

    def stuck(self) -> bool:
        """Whether the child has used up half of the time after which it is killed. From any thread."""
        job = self._job
        return job is not None and any(spent > allowed / 2 for spent, allowed, _ in self._limits(job))

    def hold(self) -> None:
        """Renew the lease of a run whose child gives no sign of life: until it is killed, nobody takes the run over.

        From another thread: a child that is frozen in a transaction may hold the database's lock.
        """
        job = self._job
        if job is None or job.run_id is None or job.silent < SILENT_SECONDS:
            return
        with self.database.write() as session:
            logic.hold(session, run_id=job.run_id, attempt=job.attempt, lease_seconds=self.settings.lease_seconds)

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            self._process.end(END_SECONDS)
            self._process = None

    def _do(self, what: dict[str, Any]) -> Any:
        with self._turn:
            if self.stopping():
                return None
            if self._process is not None and self._process.ended():  # while it had nothing to do
                log.warning("the working process has ended", status=self._process.kill())
                self._process = None
            process = self._process = self._process or WorkingProcess(self.pipelines)
            job = self._job = Job(woke=time.monotonic())
            try:
                process.send(what | {"trace": telemetry.trace_headers()})
                return self._watch(process, job)
            except EOFError:
                return self._kill(process, job, None)
            finally:
                self._job = None

    def _watch(self, process: WorkingProcess, job: Job) -> Any:
        """The job's result. EOFError: the child has ended."""
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
            if process.ready:  # until then it imports, and holds nothing
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
        """(seconds, how many it may be, what it is a sign of) of each limit that is running."""
        now, settings = time.monotonic(), self.settings
        silence = _stuck(f"gave no sign of life for {settings.lease_seconds:g} s")
        limits: list[tuple[float, float, RunError]] = [(job.silent, settings.lease_seconds, silence)]
        if job.run_id and settings.run_seconds:
            overtime = now - job.began - settings.run_seconds
            limits.append((overtime, settings.run_grace_seconds, TooLongError(settings.run_seconds)))
        if job.unwanted is not None:
            fault = _stuck(f"took no step for {settings.run_grace_seconds:g} s after it was told to stop")
            limits.append((now - job.unwanted, settings.run_grace_seconds, fault))
        return limits

    def _look(self, job: Job) -> None:
        """See whether the run goes on. The child's heartbeat sees it too, but a frozen one has none."""
        if job.run_id is None or time.monotonic() - job.looked < LOOK_SECONDS:
            return
        job.looked = time.monotonic()
        try:
            with self.database.read() as session:
                wanted = queries.state(session, job.run_id, job.attempt) == RunState.RUNNING
        except AWAY as error:
            log.warning("the database is away", run=job.run_id, error=str(error.orig))
            return
        if wanted:
            job.unwanted = None
        elif job.unwanted is None:
            job.unwanted = time.monotonic()

    def _kill(self, process: WorkingProcess, job: Job, fault: RunError | None) -> str | None:
        """Kill the child, or what is left of one that has ended (`fault` None), and write its run's end; the run."""
        self._process = None
        status = process.kill()
        fault = fault or _lost(status)
        log.error("killed the working process", run=job.run_id, code=fault.code, detail=fault.detail, status=status)
        if job.run_id is None:
            if self.stopping():
                return None
            raise JobError(fault.detail)
        became = self._insist(lambda session: _give_up(session, job, fault))
        log.warning("ended the run of a killed process", run=job.run_id, attempt=job.attempt, became=became)
        return job.run_id

    def _insist(self, act: Callable[[Session], RunState | None]) -> RunState | None:
        """Write an end although the database may be away for a moment; after the lease the reaper does it."""
        deadline = time.monotonic() + (END_SECONDS if self.stopping() else self.settings.lease_seconds)
        while True:
            try:
                with self.database.write() as session:
                    return act(session)
            except AWAY as error:
                if time.monotonic() > deadline:
                    log.error("the end could not be written; the lease will run out", error=str(error.orig))
                    return None
                time.sleep(RETRY_SECONDS)


class _InterruptedError(RunError):
    def __init__(self) -> None:
        super().__init__("interrupted", "The worker was stopped.", title="The worker was stopped")


def _give_up(session: Session, job: Job, fault: RunError) -> RunState | None:
    """End the run, or give it back, as its holder; what it became. None: it ended, or another worker has it."""
    assert job.run_id is not None
    error, became = fault.as_dict(), None
    if isinstance(fault, TooLongError):
        if logic.finish(session, run_id=job.run_id, attempt=job.attempt, state=RunState.FAILED, error=error):
            became = RunState.FAILED
    else:
        counted = not isinstance(fault, _InterruptedError)
        became = logic.release(session, run_id=job.run_id, attempt=job.attempt, error=error, counted=counted)
    if became is not None:
        logic.note(session, job.run_id, "error", "the working process was ended", error)
    return became


def _stuck(what: str) -> RunError:
    return RunError(
        "worker-stuck",
        f"The process that worked on it {what} and was killed. What it has made is kept.",
        title="The worker was stuck",
    )


def _lost(status: int | None) -> RunError:
    how = f"with status {status}" if status is None or status >= 0 else f"by {signal.Signals(-status).name}"
    return RunError(
        "worker-lost",
        f"The process that worked on it ended {how}. SIGKILL is often the kernel's answer to too little memory.",
        title="The worker's process ended",
    )
