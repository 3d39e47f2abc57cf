"""The worker of the embedded installation: it polls the `run` table, and sweeps in a thread. No broker.

The claim, the lease and the reaper are the ones of a deployment; only the doorbell is another.
"""

import threading
from collections.abc import Mapping
from functools import partial

import structlog

from service import migrate
from service.config import Settings
from service.kit import telemetry
from service.kit.db import AWAY, Database
from service.store.ledger import open_store
from workers import runner
from workers.sweeps import Sweeper

log = structlog.get_logger("featurewatch.worker")

AWAY_SECONDS = 1.0


def serve(settings: Settings, stop: threading.Event, *, pipelines: Mapping[str, runner.Pipeline] | None = None) -> None:
    """Work until `stop` is set; a run that is under way then goes back into the queue at its next check.

    Raises SchemaError where the database needs an upgrade first. A database that is away is waited for.
    """
    while not stop.is_set():
        try:
            migrate.check(settings)
            break
        except AWAY as error:
            log.warning("waiting for the database", error=str(error.orig))
            stop.wait(AWAY_SECONDS)
    database = Database(settings.resolved_database_url)
    telemetry.trace_database(database)
    artifacts = open_store(settings, database)
    sweeps = threading.Thread(target=_sweep, args=(settings, database, stop), name="sweeps", daemon=True)
    sweeps.start()
    work = partial(
        runner.run_next,
        settings=settings,
        database=database,
        artifacts=artifacts,
        worker=runner.worker_name(),
        pipelines=pipelines,
        stop=stop.is_set,
    )
    log.info("the worker is ready")
    try:
        while not stop.is_set():
            try:
                if work() is None:
                    stop.wait(settings.poll_seconds)
            except AWAY as error:
                log.warning("the database is away", error=str(error.orig))
                stop.wait(AWAY_SECONDS)
    finally:
        stop.set()
        sweeps.join()
        database.close()
        log.info("the worker has ended")


def _sweep(settings: Settings, database: Database, stop: threading.Event) -> None:
    # Without a broker: bells are only marked. Who has one runs Celery workers.
    sweeper = Sweeper(settings, database, publish=None)
    while not stop.is_set():
        sweeper.sweep()
        stop.wait(settings.poll_seconds)
