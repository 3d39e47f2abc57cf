"""Records in the database that a worker is alive, and whether its run is stuck, for `/readyz` and the metrics.

It also renews the lease of a run whose process is frozen, until the supervisor kills it.
"""

import threading
import time

import structlog

from featurewatch.service.health import queries
from featurewatch.service.kit.clock import database_now
from featurewatch.service.kit.db import AWAY, Database
from featurewatch.workers.supervision.supervisor import Supervisor

log = structlog.get_logger("featurewatch.worker")

LOOK_SECONDS = 1.0


class Presence(threading.Thread):
    """Renews a worker's row. Stopping it removes the row."""

    def __init__(self, database: Database, supervisor: Supervisor) -> None:
        super().__init__(name="presence", daemon=True)
        self.database, self.supervisor = database, supervisor
        self._stopped = threading.Event()
        self._pause = min(LOOK_SECONDS, supervisor.settings.lease_seconds / 6)

    def run(self) -> None:
        recorded, when = False, float("-inf")
        while True:
            try:
                self.supervisor.hold()
                stuck = self.supervisor.stuck()
                if stuck != recorded or time.monotonic() - when >= queries.SEEN_EVERY.total_seconds():
                    with self.database.write() as session:
                        queries.note_worker(session, self.supervisor.name, stuck=stuck, now=database_now(session))
                    recorded, when = stuck, time.monotonic()
            except AWAY as error:
                log.warning("cannot record that this worker is alive", error=str(error.orig))
            if self._stopped.wait(self._pause):
                return

    def stop(self) -> None:
        """Stop, and remove the worker's row."""
        self._stopped.set()
        self.join()
        try:
            with self.database.write() as session:
                queries.forget_worker(session, self.supervisor.name)
        except AWAY as error:  # the row expires
            log.warning("cannot record that this worker ended", error=str(error.orig))
