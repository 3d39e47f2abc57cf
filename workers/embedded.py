"""The worker of the embedded installation: it has its child look for work, and sweeps in a thread. No broker.

The claim, the lease and the reaper are the ones of a deployment; only the doorbell is another.
"""

import threading

import structlog

from featurewatch.service import migrate
from featurewatch.service.config import Settings
from featurewatch.service.kit import telemetry
from featurewatch.service.kit.db import AWAY, Database
from featurewatch.workers.presence import Presence
from featurewatch.workers.supervisor import JobError, Supervisor
from featurewatch.workers.sweeps import Sweeper

log = structlog.get_logger("featurewatch.worker")

AWAY_SECONDS = 1.0


def serve(settings: Settings, stop: threading.Event, *, pipelines: str | None = None) -> None:
    """Work until `stop` is set; a run that is under way then goes back into the queue.

    `pipelines` as of WorkingProcess. Raises SchemaError where the database needs an upgrade first. A database that is
    away is waited for.
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
    sweeps = threading.Thread(target=_sweep, args=(settings, database, stop), name="sweeps", daemon=True)
    sweeps.start()
    supervisor = Supervisor(settings, database, pipelines=pipelines, stopping=stop.is_set)
    presence = Presence(database, supervisor)
    presence.start()
    log.info("the worker is ready")
    try:
        while not stop.is_set():
            try:
                # Looked at here, so that an idle worker is one process.
                if not supervisor.waits() or supervisor.run_next() is None:
                    stop.wait(settings.poll_seconds)
            except AWAY as error:
                log.warning("the database is away", error=str(error.orig))
                stop.wait(AWAY_SECONDS)
            except JobError as error:
                log.warning("no work could be taken", error=str(error))
                stop.wait(AWAY_SECONDS)
    finally:
        stop.set()
        supervisor.close()
        presence.stop()
        sweeps.join()
        database.close()
        log.info("the worker has ended")


def _sweep(settings: Settings, database: Database, stop: threading.Event) -> None:
    # Without a broker: bells are only marked. Who has one runs Celery workers.
    sweeper = Sweeper(settings, database, publish=None)
    while not stop.is_set():
        sweeper.sweep()
        stop.wait(settings.poll_seconds)
