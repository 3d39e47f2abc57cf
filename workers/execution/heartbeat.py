"""A thread that renews a lease while its holder works."""

import threading
import time
from typing import Any, Protocol

import structlog

from featurewatch.service.config import Settings

log = structlog.get_logger("featurewatch.worker")

BEAT_SECONDS = 0.5
QUIET_BEAT_SECONDS = 2.0


class Leased(Protocol):
    """What a lease is held for: a run, or a group of a shared harvest."""

    run_id: str
    settings: Settings

    def snapshot(self) -> tuple[Any, ...]:
        """What a beat would write. Two equal snapshots: nothing to write."""

    def beat(self) -> bool:
        """Renew the lease and write the progress. False once no more beats are needed; raises if it cannot write."""

    def left(self) -> float:
        """Seconds until the lease ends."""

    def lose(self) -> None:
        """The lease has ended."""


class Heartbeat(threading.Thread):
    """Beats until it is stopped, or the lease is lost or no longer needed."""

    def __init__(self, leased: Leased) -> None:
        super().__init__(name=f"heartbeat-{leased.run_id}", daemon=True)
        self.leased = leased
        self._stopped = threading.Event()
        self._longest = min(QUIET_BEAT_SECONDS, leased.settings.lease_seconds / 3)

    def run(self) -> None:
        written, when = self.leased.snapshot(), time.monotonic()
        step = min(BEAT_SECONDS, self._longest)
        while not self._stopped.wait(step):
            snapshot = self.leased.snapshot()
            if snapshot == written and time.monotonic() - when + step / 2 < self._longest:
                continue
            try:
                if not self.leased.beat():
                    return
            except Exception as error:  # noqa: BLE001 - whatever it is, the next beat may succeed
                if self.leased.left() <= 0:
                    log.error("the lease ran out", run=self.leased.run_id, error=str(error))
                    self.leased.lose()
                    return
                log.warning("missed a heartbeat", run=self.leased.run_id, error=str(error))
                continue
            written, when = snapshot, time.monotonic()

    def stop(self) -> None:
        """Stop, after a beat that is under way."""
        self._stopped.set()
        self.join()
