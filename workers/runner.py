"""One run, from claim to end: claim -> heartbeat -> execute -> fenced finish.

The database is the source of truth. A worker holds a run by its attempt number and a lease that a thread renews. Every
write names the attempt, so a worker that lost its run (because it was paused or cut off) can no longer write. Messages,
embedded or by Celery, only decide when `run_next` is called. It runs in a process that a supervisor may kill.
"""

import os
import socket
import threading
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

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
from featurewatch.workers.execution import Execution
from featurewatch.workers.execution.heartbeat import Heartbeat
from featurewatch.workers.execution.lease import write_end

log = structlog.get_logger("featurewatch.worker")

Pipeline = Callable[[Execution], None]

_NEVER = threading.Event()


def worker_name() -> str:
    """Name of this process in the tables of runs and workers."""
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
    """Claim the run whose turn it is and execute it. Returns its id, or None if there was nothing to do.

    `run_id`: the run that a message named. `pipelines`: by kind; default: the real ones. `stop`: whether this process
    should end, which puts the run back into the queue at its next check. `claimed` is called before the run begins.
    """
    with database.read() as session:
        if not queries.candidates(session, run_id=run_id):
            return None
    if not pipelines:
        # Imports torch, which takes seconds and holds the GIL: do it before a claim, or heartbeats would be late.
        from featurewatch.workers.pipelines import PIPELINES  # noqa: PLC0415

        pipelines = PIPELINES
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
        heartbeat = Heartbeat(execution)
        heartbeat.start()
        try:
            _execute(execution, pipelines)
        finally:
            heartbeat.stop()
    return run.id


def help_others(
    *,
    settings: Settings,
    database: Database,
    artifacts: ArtifactStore,
    worker: str | None = None,
    stop: Callable[[], bool] = _NEVER.is_set,
) -> int:
    """Read groups of other workers' harvests until none is waiting, or a run is. Returns how many were read."""
    with database.read() as session:
        if not shards.any_free(session, clock.database_now(session)):
            return 0
    from featurewatch.workers.pipelines.shared.shared_harvest import HarvestHelper  # noqa: PLC0415 - imports torch

    return HarvestHelper(settings, database, artifacts, worker=worker or worker_name(), stop=stop).help()


def _execute(execution: Execution, pipelines: Mapping[str, Pipeline]) -> None:
    """Run the pipeline, and record how it ended."""
    try:
        _pipeline(execution, pipelines)(execution)
        if not execution.finished:
            with execution.write() as session:
                execution.finish(session, {})
        log.info("succeeded", seconds=execution.seconds())
    except LeaseLostError as error:
        log.warning("lost the run", reason=str(error))
    except RunCancelledError:
        log.info("cancelled")
        _end(execution, RunState.CANCELLED)
    except RunError as error:
        log.warning("failed", **error.as_dict())
        _end(execution, RunState.FAILED, error.as_dict())
    except DamagedArtifactError as error:
        log.error("damaged artifact", artifact=error.name, reason=error.reason)
        set_aside = partial(damage.set_aside, artifacts=execution.artifacts, error=error)
        detail = write_end(execution.database.read, set_aside, execution.left) or error.detail
        _end(execution, RunState.FAILED, RunError(error.code, detail, title=error.title).as_dict())
    except MissingArtifactError as error:
        log.error("missing artifact", artifact=error.name)
        detail = f"{error.detail} {damage.advice(error.name)}."
        _end(execution, RunState.FAILED, RunError(error.code, detail, title=error.title).as_dict())
    except ProblemError as error:  # of checks that are shared with the API
        log.warning("failed", code=error.code, detail=error.detail)
        _end(execution, RunState.FAILED, RunError(error.code, error.detail, title=error.title).as_dict())
    except AWAY as error:
        log.exception("the database was unavailable")
        _give_back(execution, _interrupted("The database was unavailable", str(error.orig)), counted=True)
    except GivingWayError as error:
        log.info("yielding to another run")
        _give_back(execution, _interrupted("Another run went first", str(error)), counted=False)
    except (WorkerStoppingError, SystemExit, KeyboardInterrupt) as error:
        log.info("stopping")
        _give_back(execution, _interrupted("The worker was stopped", type(error).__name__), counted=False)
        if not isinstance(error, WorkerStoppingError):
            raise
    except Exception as error:
        log.exception("failed")
        _end(execution, RunState.FAILED, fault_of(error).as_dict())


def _pipeline(execution: Execution, pipelines: Mapping[str, Pipeline]) -> Pipeline:
    try:
        return pipelines[execution.kind]
    except KeyError:
        raise RunError("unknown-kind", f"This worker has no pipeline for runs of kind {execution.kind!r}.") from None


def _end(execution: Execution, state: RunState, error: dict[str, Any] | None = None) -> None:
    def act(session: Session) -> bool:
        return execution.end(session, state, error=error)

    if not write_end(execution.database.write, act, execution.left):
        log.warning("lost the run before its end was written", state=state)


def _give_back(execution: Execution, error: dict[str, Any], *, counted: bool) -> None:
    def act(session: Session) -> RunState | None:
        return execution.release(session, error, counted=counted)

    log.info("given back", state=write_end(execution.database.write, act, execution.left))


def _interrupted(title: str, detail: str) -> dict[str, Any]:
    return {"code": "interrupted", "title": title, "detail": detail[:1000]}
