"""`featurewatch up --processes N`: several processes answer at one address, and none outlives the service."""

import json
import signal
import socket
import subprocess
import sys
from http import HTTPStatus
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.processes import alive
from tests.services import wait_until


def _children(pid: int) -> list[int]:
    """Ids of the processes that one has started and that still run."""
    found = [int(one) for file in Path(f"/proc/{pid}/task").glob("*/children") for one in file.read_text().split()]
    return [one for one in found if "spawn_main" in Path(f"/proc/{one}/cmdline").read_text()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_all_end_with_the_service(tmp_path: Path, number: signal.Signals) -> None:
    command = [
        sys.executable,
        "-c",
        "from featurewatch.service.cli import main; main()",
        "up",
        "--no-worker",
        "--json",
        "--port",
        "0",
    ]
    with subprocess.Popen(
        [*command, "--processes", "2", "--data-dir", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as service:
        assert service.stdout is not None
        url = json.loads(service.stdout.readline())["url"]
        assert urlopen(f"{url}/readyz", timeout=60).status == HTTPStatus.OK
        answering = _children(service.pid)
        assert len(answering) == 2
        service.send_signal(number)
        assert service.wait(timeout=30) == (0 if number == signal.SIGTERM else -number)
    assert wait_until(lambda: not any(map(alive, answering)), 30)
    with socket.socket() as again:  # another service may listen there now
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", int(url.rpartition(":")[2])))
