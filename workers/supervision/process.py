"""The working process as its supervisor sees it: jobs in, messages out, both as JSON lines."""

import json
import os
import selectors
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

KILLED_SECONDS = 5.0
"""A killed process ends at once, unless a driver keeps it."""


class WorkingProcess:
    """`child` in its own process group, together with the processes of a fit on several GPUs."""

    def __init__(self, pipelines: str | None = None) -> None:
        """`pipelines`: MODULE:NAME of a mapping from run kind to pipeline; None: the real ones."""
        self._receiver, sender = os.pipe()
        command = [
            sys.executable,
            "-m",
            "featurewatch.workers.supervision.child",
            "--parent",
            str(os.getpid()),
            "--messages",
            str(sender),
        ]
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [*command, "--pipelines", pipelines] if pipelines else command,
            stdin=subprocess.PIPE,
            pass_fds=[sender],
            process_group=0,
        )
        os.close(sender)
        self._received = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._receiver, selectors.EVENT_READ)
        self.ready = False
        """Whether it has imported everything and waits for jobs."""

    @property
    def pid(self) -> int:
        """Its process id, and that of its group."""
        return self._process.pid

    def ended(self) -> bool:
        return self._process.poll() is not None

    def send(self, job: dict[str, Any]) -> None:
        """Send it a job. If it has ended, `messages` raises EOFError."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()

    def messages(self, seconds: float) -> list[dict[str, Any]]:
        """New messages; waits for the first for up to `seconds`. EOFError if the process ended."""
        if not self._selector.select(seconds):
            return []
        data = os.read(self._receiver, 65536)
        if not data:
            raise EOFError
        *lines, self._received = (self._received + data).split(b"\n")
        messages = [json.loads(line) for line in lines]
        self.ready = self.ready or bool(messages)
        return messages

    def terminate(self) -> None:
        """Ask it to put its run back into the queue and end."""
        self._process.terminate()

    def end(self, seconds: float) -> int | None:
        """Let an idle process end, or kill it. Its exit status; None if the kernel has not released it yet."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.kill()

    def kill(self) -> int | None:
        """Kill all processes of its group. Returns the exit status as `end` does."""
        # Before waiting for it: until then no other process can get its id.
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(KILLED_SECONDS)
        self._selector.close()
        if self._receiver >= 0:
            os.close(self._receiver)
            self._receiver = -1
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        return self._process.returncode
