"""The real parts, started as users start them (service and workers), and looks into their data."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
from sqlalchemy import Table, select

from benchmarks.planted_data import Lineage, write_checkpoint
from featurewatch.service.client import Client
from featurewatch.service.client.types import Run
from featurewatch.service.kit.db import Base, Database
from tests.processes import held, state_of

HOOK_POINT = "resid_post.1"
OPTIONS = {"n_features": 16, "k": 2, "steps": 60, "batch_size": 128}
"""Of a crosscoder that is fitted in a second."""
WAIT_SECONDS = 120.0

ONE_DATABASE = pytest.mark.parametrize("service", ["sqlite"], indirect=True, scope="session")
"""For what is measured, which knows no database. Whatever is stored, killed, kept or removed is tested on both."""


def environment(folder: Path, database_url: str, **settings: object) -> dict[str, str]:
    """Environment of a process of an installation in `folder`, which is also the one root; none of this shell's."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FEATUREWATCH_")}
    ours = {
        "data_dir": folder / "data",
        "database_url": database_url,
        "roots": folder,
        "poll_seconds": 0.1,
        "threads": 1,
    }
    named = {f"FEATUREWATCH_{name.upper()}": str(value) for name, value in (ours | settings).items()}
    return clean | named | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


class Service:
    """`featurewatch up` on a free port, with a worker of its own or without."""

    def __init__(self, folder: Path, database_url: str, *, worker: bool = True, **settings: object) -> None:
        self.folder, self.database_url = folder, database_url
        self.log = folder / "service.log"
        command = [
            sys.executable,
            "-c",
            "from featurewatch.service.cli import main; main()",
            "up",
            "--json",
            "--port",
            "0",
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command if worker else [*command, "--no-worker"],
                env=environment(folder, database_url, **settings),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        where = json.loads(line)
        self.worker: int | None = where["worker"]
        self.client = Client(where["url"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        with self.process:  # which closes its pipe
            try:
                assert self.process.wait(timeout=40) == 0, self.log.read_text()[-3000:]
            finally:
                self.process.kill()

    @contextmanager
    def idle_worker(self) -> Iterator[None]:
        """The worker stands still in the block: what is registered there waits in the queue."""
        assert self.worker
        with held(self.worker, self.database_url):
            yield

    def register(self, family: str, name: str, uri: str, **options: Any) -> Run:
        """Register a checkpoint and wait for the end of its run, however it ends."""
        run = self.client.register(family, name=name, uri=uri, **options)["run"]
        return self.client.wait(run["id"], timeout=WAIT_SECONDS, interval=0.05)

    def judge(self, family: str, name: str, uri: str, **options: Any) -> Run:
        """Register a checkpoint; its run must succeed."""
        run = self.register(family, name, uri, **options)
        assert run["state"] == "succeeded", f"{run['error']}\n{self.log.read_text()[-3000:]}"
        return run


class Worker:
    """`python -m featurewatch.workers`, whose log can be followed and which can be killed."""

    def __init__(self, folder: Path, database_url: str, number: int, *arguments: str, **settings: object) -> None:
        self.path = folder / f"worker-{number}.log"
        with self.path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "featurewatch.workers", *arguments],
                env=environment(folder, database_url, **settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """It ends what it does first; nothing, where it has ended."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=40)
            finally:
                self.process.kill()

    def log(self) -> str:
        """All that it has said so far."""
        return self.path.read_text(errors="replace")

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Its log lines of one event."""
        found = (json.loads(line) for line in self.log().splitlines(keepends=True) if line.endswith("}\n"))
        return [line for line in found if line.get("event") == event]

    def stands_still(self) -> bool:
        """Whether it was held, by whomever."""
        return state_of(self.process.pid) == "T"

    def go_on(self) -> None:
        """It stands still no longer, nor does its child."""
        for file in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            for child in file.read_text().split():
                os.kill(int(child), signal.SIGCONT)
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL: it can tidy up nothing."""
        self.process.kill()
        self.process.wait()


def write_lineage(lineage: Lineage, folder: Path) -> list[str]:
    """Write all checkpoints of a planted lineage as v1, v2, ...; their URIs."""
    uris = []
    for checkpoint in range(1, lineage.shape.n_checkpoints + 1):
        write_checkpoint(lineage, checkpoint, folder / f"v{checkpoint}")
        uris.append(f"activations+file://{folder}/v{checkpoint}")
    return uris


def rows_of(database_url: str, table: type[Base], *, without: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """All rows of a table in the order of its primary key, less some columns."""
    described = table.__table__
    assert isinstance(described, Table)
    with closing(Database(database_url)) as database, database.read() as session:
        rows = session.execute(select(described).order_by(*described.primary_key)).mappings()
        return [{name: value for name, value in row.items() if name not in without} for row in rows]


def unfinished(data_dir: Path) -> list[str]:
    """Files and folders that are being made, or that nobody finished: a quiet installation has none."""
    found = [*(data_dir / "partial").glob("*"), *(data_dir / "artifacts").glob("**/.*")]
    return [str(path.relative_to(data_dir)) for path in found]
