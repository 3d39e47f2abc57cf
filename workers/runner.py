"""One run, from claim to end: claim -> heartbeat -> execute -> fenced finish.

The database is the truth. The worker holds a run by its attempt number and a lease that a thread renews; every write
names the attempt, so a worker that lost its run (it was paused, or cut off) writes nothing any more. Doorbells,
embedded or Celery, only decide when `run_next` is called. It runs in a process that a supervisor may kill.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

import structlog
from sqlalchemy.orm import Session

from featurewatch.service.config import Settings
from featurewatch.service.kit import clock
from featurewatch.service.kit.artifacts import ArtifactStore, DamagedArtifactError, MissingArtifactError
from featurewatch.service.kit.db import AWAY, Database
from featurewatch.service.kit.logs import listening
from featurewatch.service.kit.problems import ProblemError
from featurewatch.service.models import Run
from featurewatch.service.runs import logic, queries
from featurewatch.service.runs.states import RunState
from featurewatch.service.shards import queries as shards
from featurewatch.service.store import damage
from featurewatch.workers.errors import (
    GivingWayError,
    LeaseLostError,
    RunCancelledError,
    RunError,
    WorkerStoppingError,
    fault_of,
)
from featurewatch.workers.execution import RETRY_SECONDS, Execution
from featurewatch.workers.heart import Heart

log = structlog.get_logger("featurewatch.worker")

Pipeline = Callable[[Execution], None]
Answer = TypeVar("Answer")

_NEVER = threading.Event()


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
    claimed: Callable[[Run], None] | None = None,
) -> str | None:
    """Claim the run whose turn it is and take it to an end. Its id; None where there was nothing to do.

    `run_id` is what a bell said; `pipelines` defaults to the real ones; `stop` says that this process is to end,
    which puts the run back into the queue at its next check. `claimed` is told of the run before it begins.
    """
    with database.read() as session:
        if not queries.candidates(session, run_id=run_id):
            return None
    pipelines = pipelines or _real_pipelines()
    with database.write() as session:
        run = logic.claim(session, worker=worker or worker_name(), lease_seconds=settings.lease_seconds, run_id=run_id)
    if run is None:
        return None
    if claimed is not None:
        claimed(run)
    execution = Execution(run, settings=settings, database=database, artifacts=artifacts, stop=stop)
    context = {"run": run.id, "attempt": run.attempt, "request_id": run.request_id}
    with structlog.contextvars.bound_contextvars(**context), listening(run.id, execution.lines.add):
        log.info("claimed", kind=run.kind)
        heart = Heart(execution)
        heart.start()
        try:
            _execute(execution, pipelines)
        finally:
            heart.stop()
    return run.id


def help_others(
    *,
    settings: Settings,
    database: Database,
    artifacts: ArtifactStore,
    worker: str | None = None,
    stop: Callable[[], bool] = _NEVER.is_set,
) -> int:
    """Do groups of harvests that other workers lead, until none waits or a run does; how many were done."""
    with database.read() as session:
        if not shards.any_free(session, clock.database_now(session)):
            return 0
    from featurewatch.workers.pipelines.shared.shared_harvest import HarvestHelper  # noqa: PLC0415 - loads torch

    return HarvestHelper(settings, database, artifacts, worker=worker or worker_name(), stop=stop).help()


def _execute(execution: Execution, pipelines: Mapping[str, Pipeline]) -> None:
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
    except DamagedArtifactError as error:
        log.error("damaged artifact", artifact=error.name, reason=error.reason)
        set_aside = partial(damage.set_aside, artifacts=execution.artifacts, error=error)
        detail = _insist(execution, set_aside, execution.database.read) or error.detail
        _end(execution, RunState.FAILED, RunError(error.code, detail, title=error.title).as_dict())
    except MissingArtifactError as error:
        log.error("missing artifact", artifact=error.name)
        detail = f"{error.detail} {damage.advice(error.name)}."
        _end(execution, RunState.FAILED, RunError(error.code, detail, title=error.title).as_dict())
    except ProblemError as error:  # of checks that the API shares
        log.warning("failed", code=error.code, detail=error.detail)
        _end(execution, RunState.FAILED, RunError(error.code, error.detail, title=error.title).as_dict())
    except AWAY as error:
        log.exception("interrupted by the database")
        _give_back(execution, _interrupted("The database was away", str(error.orig)), counted=True)
    except GivingWayError as error:
        log.info("gives way")
        _give_back(execution, _interrupted("It gave way", str(error)), counted=False)
    except (WorkerStoppingError, SystemExit, KeyboardInterrupt) as error:
        log.info("stopping")
        _give_back(execution, _interrupted("The worker was stopped", type(error).__name__), counted=False)
        if not isinstance(error, WorkerStoppingError):
            raise
    except Exception as error:
        log.exception("failed")
        _end(execution, RunState.FAILED, fault_of(error).as_dict())


def _real_pipelines() -> Mapping[str, Pipeline]:
    # Not above: it loads torch, which takes seconds. Before a claim: it keeps the GIL for long, and with it the heart.
    from featurewatch.workers.pipelines import PIPELINES  # noqa: PLC0415

    return PIPELINES


def _pipeline(execution: Execution, pipelines: Mapping[str, Pipeline]) -> Pipeline:
    try:
        return pipelines[execution.kind]
    except KeyError:
        raise RunError("unknown-kind", f"This worker knows no runs of the kind {execution.kind!r}.") from None


def _end(execution: Execution, state: RunState, error: dict[str, Any] | None = None) -> None:
    def act(session: Session) -> bool:
        return execution.end(session, state, error=error)

    if not _insist(execution, act):
        log.warning("lost before its end was written", wanted=state)


def _give_back(execution: Execution, error: dict[str, Any], *, counted: bool) -> None:
    def act(session: Session) -> RunState | None:
        return execution.release(session, error, counted=counted)

    log.info("given back", became=_insist(execution, act))


def _insist(
    execution: Execution,
    act: Callable[[Session], Answer],
    opening: Callable[[], AbstractContextManager[Session]] | None = None,
) -> Answer | None:
    """Write an end although the database may be away for a moment; after the lease the reaper does it."""
    opening = opening or execution.database.write
    while True:
        try:
            with opening() as session:
                return act(session)
        except AWAY as error:
            if execution.lease_left() <= 0:
                log.error("the end could not be written; the lease will run out", error=str(error.orig))
                return None
            time.sleep(RETRY_SECONDS)


def _interrupted(title: str, detail: str) -> dict[str, Any]:
    return {"code": "interrupted", "title": title, "detail": detail[:1000]}
