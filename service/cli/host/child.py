"""The worker process of `featurewatch up`: started, restarted when it dies, and stopped with the service."""

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
MAX_PAUSE_SECONDS = 30.0
HEALTHY_SECONDS = 60.0
"""A worker that ran this long was healthy, so that the next pause is short again."""


class WorkerProcess:
    """A worker in a child process, as a context manager. `say` gets a line whenever the worker is restarted."""

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        # While they wait, threads of torch would spin and take the cores from each other and from the API.
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
        # On SIGTERM it gives its run back at once. After a kill the run would wait for its lease to expire.
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @property
    def pid(self) -> int | None:
        """Process id of the running worker."""
        return self._process.pid if self._process else None

    def _start(self) -> None:
        # In its own session, so that Ctrl-C reaches only the service, which then stops the worker gracefully. If the
        # service is killed, the worker notices and exits.
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
            if time.monotonic() - started > HEALTHY_SECONDS:
                pause = 1.0
            self.say(f"the worker exited with status {process.returncode}; restarting it in {pause:.0f} s")
            if self._stopping.wait(pause):
                return
            pause = min(pause * 2, MAX_PAUSE_SECONDS)
            started = time.monotonic()
            self._start()
