"""The worker process of `featurewatch up`: started, started again when it dies, and ended with the service."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from featurewatch.service.config import Settings

STOP_SECONDS = 20.0
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0
"""A worker that ran this long was healthy: the next pause is short again."""


class WorkerProcess:
    """A worker process as a child. Use as a context manager; `say` gets a line when it has to be started again."""

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        # Threads of torch that spin while they wait take the cores from each other, and from the API.
        self.environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **settings.environment()}
        self.say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="worker-watcher", daemon=True)

    def __enter__(self) -> Self:
        self._start()
        self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _t: TracebackType | None) -> None:
        self._stopping.set()
        self._watcher.join()
        process = self._process
        if process is None or process.poll() is not None:
            return
        # Asked, it gives its run back at once; killed, the run would wait for its lease to end.
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @property
    def pid(self) -> int | None:
        """Process id of the worker that runs now."""
        return self._process.pid if self._process else None

    def _start(self) -> None:
        # A session of its own: an interrupt at the terminal reaches the service, which then ends the worker in order.
        # Where the service is killed, and can end nothing any more, the worker ends by itself.
        self._process = subprocess.Popen(  # noqa: S603 fixed arguments
            [sys.executable, "-m", "featurewatch.workers", "--exit-with-parent", str(os.getpid())],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _watch(self) -> None:
        pause, started = 1.0, time.monotonic()
        while not self._stopping.wait(0.2):
            process = self._process
            if process is None or process.poll() is None:
                continue
            if time.monotonic() - started > STEADY_S:
                pause = 1.0
            self.say(f"the worker ended with status {process.returncode}; starting it again in {pause:.0f} s")
            if self._stopping.wait(pause):
                return
            pause = min(pause * 2, LONGEST_PAUSE_S)
            started = time.monotonic()
            self._start()
