"""Says in the database that a worker is there, and whether its run is stuck: `/readyz` and the metrics tell of it.

It also keeps the lease of a run whose process is frozen, until the supervisor has ended it.
"""

import threading
import time

import structlog

from featurewatch.service.kit.clock import database_now
from featurewatch.service.kit.db import AWAY, Database
from featurewatch.service.status import queries
from featurewatch.workers.supervisor import Supervisor

log = structlog.get_logger("featurewatch.worker")

LOOK_SECONDS = 1.0


class Presence(threading.Thread):
    """Renews a worker's row until it is stopped, which removes the row."""

    def __init__(self, database: Database, supervisor: Supervisor) -> None:
        super().__init__(name="presence", daemon=True)
        self.database, self.supervisor = database, supervisor
        self._stopped = threading.Event()
        self._pause = min(LOOK_SECONDS, supervisor.settings.lease_seconds / 6)

    def run(self) -> None:
        told, when = False, float("-inf")
        while True:
            try:
                self.supervisor.hold()
                stuck = self.supervisor.stuck()
                if stuck != told or time.monotonic() - when >= queries.SEEN_EVERY.total_seconds():
                    with self.database.write() as session:
                        queries.note_worker(session, self.supervisor.name, stuck=stuck, now=database_now(session))
                    told, when = stuck, time.monotonic()
            except AWAY as error:
                log.warning("the database does not know that this worker is there", error=str(error.orig))
            if self._stopped.wait(self._pause):
                return

    def stop(self) -> None:
        """The worker ends."""
        self._stopped.set()
        self.join()
        try:
            with self.database.write() as session:
                queries.forget_worker(session, self.supervisor.name)
        except AWAY as error:  # the row is forgotten with time
            log.warning("the database does not know that this worker has ended", error=str(error.orig))
