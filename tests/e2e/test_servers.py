"""The servers that the tests start."""

import subprocess
import sys
from pathlib import Path

from tests import processes, services

ROOT = Path(__file__).parents[2]


def test_servers_end_with_a_killed_session(tmp_path: Path) -> None:
    """A test session that is killed leaves no Postgres and no Valkey behind."""
    program = (
        "import os, sys; from tests.services import postgres_server, valkey_server\n"
        "with postgres_server(private=True) as p, valkey_server(private=True) as v:\n"
        "    print(p.process.server.pid, v.process.server.pid, p.process.folder, v.process.folder, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    *pids, one, other = done.stdout.split()

    def left() -> list[str]:
        return [pid for pid in pids if processes.alive(int(pid))] + [at for at in (one, other) if Path(at).exists()]

    assert services.wait_until(lambda: not left(), 15), f"still there: {left()}"
