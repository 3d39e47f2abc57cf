"""The embedded service in a process of its own, and the `featurewatch` command beside it."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

from featurewatch.service.cli import main

SHAPE = {
    "n_checkpoints": 2, "n_positions": 8000, "width": 64, "n_planted": 32,
    "n_suppressed": 3, "n_removed": 4, "n_born": 0, "lowest_rate": 0.03,
}  # fmt: skip
PROGRAM = (sys.executable, "-c", "from featurewatch.service.cli import main; main()")
FIT = ["--features", "40", "--k", "2", "--steps", "600", "--batch-size", "256", "--learning-rate", "0.003"]


def command(*arguments: str, env: dict[str, str] | None = None, timeout: float = 120) -> subprocess.CompletedProcess:
    """Run `featurewatch` to its end, with nothing of this shell's settings."""
    return subprocess.run(
        [*PROGRAM, *arguments],
        env=_clean() | (env or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def within(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """The same in this process: without the seconds in which another one would start."""
    out, err, code, umask = io.StringIO(), io.StringIO(), 0, os.umask(0o022)
    with (
        mock.patch.dict(os.environ, _clean() | (env or {}), clear=True),
        mock.patch.object(sys, "argv", ["featurewatch", *arguments]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os.umask(umask)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("FEATUREWATCH_")}


class Up:
    """`featurewatch up` on a free port."""

    def __init__(
        self, folder: Path, *arguments: str, program: Sequence[str] = PROGRAM, env: dict[str, str] | None = None
    ) -> None:
        self.log = folder / "up.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*program, "up", "--json", "--port", "0", "--data-dir", str(folder / "data"), *arguments],
                env=_clean() | {"FEATUREWATCH_POLL_SECONDS": "0.1"} | (env or {}),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                umask=0o022,
            )
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        self.where: dict[str, Any] = json.loads(line)
        self.url: str = self.where["url"].replace("0.0.0.0", "127.0.0.1")

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
        return within(*arguments, env={"FEATUREWATCH_URL": self.url} | (env or {}))

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=40)
        finally:
            self.process.kill()
            assert self.process.stdout
            self.process.stdout.close()
