"""What a run is doing: its stage, how far the stage is, and the seconds that each stage took."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class _Stage:
    name: str | None = None
    began: float = 0.0
    fraction: float = 0.0
    detail: dict[str, Any] = field(default_factory=dict)


class Progress:
    """The progress of one run, from any thread. Stages may be nested; the innermost is shown."""

    def __init__(self, seconds: Mapping[str, float]) -> None:
        """`seconds`: what earlier attempts took, by stage."""
        self._lock = threading.Lock()
        self._stage = _Stage()
        self._seconds = dict(seconds)
        self.rates: dict[str, float] = {}
        """Stage -> positions per second, as the stage reported them"""

    @contextmanager
    def entered(self, name: str) -> Iterator[None]:
        with self._lock:
            outer, self._stage = self._stage, _Stage(name, time.monotonic())
        try:
            yield
        finally:
            with self._lock:
                self._seconds = self._seconds_now()
                if "positions_per_second" in self._stage.detail:
                    self.rates[name] = self._stage.detail["positions_per_second"]
                self._stage = outer

    def report(self, fraction: float, detail: dict[str, Any]) -> None:
        """Set how far the stage is, from 0 to 1. An empty detail leaves the last one."""
        with self._lock:
            self._stage.fraction = min(max(float(fraction), 0.0), 1.0)
            self._stage.detail = detail or self._stage.detail

    def seconds(self) -> dict[str, float]:
        """Seconds by stage, including the current one."""
        with self._lock:
            return self._seconds_now()

    def columns(self) -> dict[str, Any]:
        """The progress as a heartbeat stores it. Seconds are those of the stages that ended."""
        with self._lock:
            stage = self._stage
            return {
                "stage": stage.name,
                "progress": stage.fraction,
                "detail": stage.detail,
                "seconds": dict(self._seconds),
            }

    def _seconds_now(self) -> dict[str, float]:
        name = self._stage.name
        if name is None:
            return dict(self._seconds)
        spent = time.monotonic() - self._stage.began
        return self._seconds | {name: round(self._seconds.get(name, 0.0) + spent, 3)}
