"""The heartbeat: a thread that renews a lease while its holder works."""

import threading
import time
from typing import Any, Protocol

import structlog

from featurewatch.service.config import Settings

log = structlog.get_logger("featurewatch.worker")

BEAT_SECONDS = 0.5
QUIET_BEAT_SECONDS = 2.0


class Held(Protocol):
    """What is held by a lease: a run, or a shard of one."""

    run_id: str
    settings: Settings

    def snapshot(self) -> tuple[Any, ...]:
        """What a beat would write; the same twice: nothing new to tell."""
        ...

    def beat(self) -> bool:
        """Renew the lease and write the progress; whether beats are still wanted. Raises where it cannot be written."""
        ...

    def lease_left(self) -> float:
        """Seconds until the lease is over."""
        ...

    def lose(self) -> None:
        """The lease is over."""
        ...


class Heart(threading.Thread):
    """Beats until it is stopped, or what is held is lost or over."""

    def __init__(self, held: Held) -> None:
        super().__init__(name=f"heartbeat-{held.run_id}", daemon=True)
        self.held = held
        self._stopped = threading.Event()
        self._longest = min(QUIET_BEAT_SECONDS, held.settings.lease_seconds / 3)

    def run(self) -> None:
        told, spoke = self.held.snapshot(), time.monotonic()
        step = min(BEAT_SECONDS, self._longest)
        while not self._stopped.wait(step):
            news = self.held.snapshot()
            if news == told and time.monotonic() - spoke + step / 2 < self._longest:
                continue
            try:
                if not self.held.beat():
                    return
            except Exception as error:  # noqa: BLE001 - whatever it is, the next beat may succeed
                if self.held.lease_left() <= 0:
                    log.error("the lease ran out", run=self.held.run_id, error=str(error))
                    self.held.lose()
                    return
                log.warning("missed a beat", run=self.held.run_id, error=str(error))
                continue
            told, spoke = news, time.monotonic()

    def stop(self) -> None:
        """Stop beating, and wait for a beat that is under way."""
        self._stopped.set()
        self.join()
