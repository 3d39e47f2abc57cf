"""The process that does the work, as the one that supervises it sees it: jobs in, messages out, both JSON lines."""

import json
import os
import selectors
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

KILLED_SECONDS = 5.0
"""A killed process is gone at once, unless a driver holds it."""


class WorkingProcess:
    """`workers.child` in a process group of its own, which has the processes of a shared fit in it too."""

    def __init__(self, pipelines: str | None = None) -> None:
        """`pipelines`: MODULE:NAME of a mapping kind -> pipeline; None: the real ones."""
        self._receiver, sender = os.pipe()
        command = [
            sys.executable,
            "-m",
            "featurewatch.workers.child",
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
        """Whether it has imported what it needs and waits for jobs."""

    @property
    def pid(self) -> int:
        """Its process id, which is that of its group."""
        return self._process.pid

    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self._process.poll() is not None

    def send(self, job: dict[str, Any]) -> None:
        """Hand it a job. One that has ended gets nothing: `messages` says so."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()

    def messages(self, seconds: float) -> list[dict[str, Any]]:
        """What it has told, waiting so long for the first of it. EOFError: it has ended."""
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
        """Ask it to put its run back into the queue, and to end."""
        self._process.terminate()

    def end(self, seconds: float) -> int | None:
        """Let an idle one end by itself, or kill it. Its exit status; None: the kernel has not let it go yet."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.kill()

    def kill(self) -> int | None:
        """End it and all processes of its group at once. Exit status as of `end`."""
        # Before it is waited for: then its number cannot be another's yet.
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
