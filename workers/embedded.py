"""The worker of the embedded installation: it polls for work in place of a broker, and sweeps in a thread.

Claims, leases and the reaper are the same as in a deployment.
"""

import threading

import structlog

from featurewatch.service import migrate
from featurewatch.service.config import Settings
from featurewatch.service.kit import telemetry
from featurewatch.service.kit.db import AWAY, Database
from featurewatch.workers.supervision.presence import Presence
from featurewatch.workers.supervision.supervisor import JobError, Supervisor
from featurewatch.workers.sweeps import Sweeper

log = structlog.get_logger("featurewatch.worker")

AWAY_SECONDS = 1.0


def serve(settings: Settings, stop: threading.Event, *, pipelines: str | None = None) -> None:
    """Work until `stop` is set. A run in progress then goes back into the queue.

    `pipelines`: as in WorkingProcess. Waits for an unavailable database. SchemaError if the database needs an upgrade.
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
    log.info("worker ready")
    try:
        while not stop.is_set():
            try:
                # Checked here, so that an idle worker needs no child.
                if not supervisor.has_work() or supervisor.run_next() is None:
                    stop.wait(settings.poll_seconds)
            except AWAY as error:
                log.warning("the database is unavailable", error=str(error.orig))
                stop.wait(AWAY_SECONDS)
            except JobError as error:
                log.warning("a job failed", error=str(error))
                stop.wait(AWAY_SECONDS)
    finally:
        stop.set()
        supervisor.close()
        presence.stop()
        sweeps.join()
        database.close()
        log.info("worker stopped")


def _sweep(settings: Settings, database: Database, stop: threading.Event) -> None:
    # There is no broker, so messages are only marked as sent.
    sweeper = Sweeper(settings, database, publish=None)
    while not stop.is_set():
        sweeper.sweep()
        stop.wait(settings.poll_seconds)
