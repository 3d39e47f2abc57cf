"""An embedded installation in a folder, as a child process, and access to the artifacts it stores."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx2
import torch
from safetensors.torch import load_file
from sqlalchemy import select
from torch import Tensor

from featurewatch.service.config import Settings
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.db import Database
from featurewatch.service.models import Checkpoint, Source
from featurewatch.workers.activations.store import ActivationSet, open_activations

START_SECONDS = 60.0
STOP_SECONDS = 20.0
BLOCK = 8192
"""Positions per read"""


class NoServiceError(RuntimeError):
    """The service did not start; the message ends with its log."""


class Installation:
    """`featurewatch up` on a free loopback port, with all its data in `data_dir`.

    It ignores FEATUREWATCH_ settings of the environment: the demo must not depend on them, nor touch an installation
    that they configure. `roots`: the folders that it may read releases from.
    """

    def __init__(self, data_dir: Path, roots: list[Path], *, port: int = 0) -> None:
        self.data_dir = data_dir
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = data_dir / "service.log"
        self._roots = ":".join(str(root.resolve()) for root in roots)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FEATUREWATCH_")}
        environment |= {
            "FEATUREWATCH_DATA_DIR": str(self.data_dir),
            "FEATUREWATCH_ROOTS": self._roots,
            # The demo's receiver listens on loopback, which is blocked for webhooks by default.
            "FEATUREWATCH_WEBHOOK_ALLOW": "127.0.0.0/8",
            # Spinning threads would take cores from the demo's own work.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        command = [
            sys.executable,
            "-c",
            "from featurewatch.service.cli import main; main()",
            "up",
            "--port",
            str(self.port),
        ]
        with self.log.open("ab") as log:
            # In a separate session, so that Ctrl-C reaches only the demo, which then stops the service cleanly.
            self._process = subprocess.Popen(  # noqa: S603 fixed arguments
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def wait(self) -> None:
        if self._process is not None:
            self._process.wait()

    def fitted(self, checkpoint: str, hook_point: str) -> "Fitted":
        """The dictionary of a judged checkpoint, from the database and artifact store. There is only one family."""
        settings = Settings(data_dir=self.data_dir, database_url="", artifacts="")
        database = Database(settings.resolved_database_url)
        try:
            with database.read() as session:
                dictionary, activations = session.execute(
                    select(Source.dictionary, Source.activations)
                    .join(Checkpoint, Checkpoint.id == Source.checkpoint_id)
                    .where(Checkpoint.name == checkpoint, Source.hook_point == hook_point)
                ).one()
        finally:
            database.close()
        if dictionary is None or activations is None:
            raise LookupError(f"{checkpoint} has no dictionary or no activations at {hook_point}")
        store = ArtifactStore(settings.artifacts_uri, self.data_dir / "cache")
        decoder = load_file(store.path(dictionary))["decoder"]
        stream = open_activations(store.path(activations), hook_points=[hook_point])
        return Fitted(decoder, energy_shares(stream, hook_point, decoder))

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        with httpx2.Client(trust_env=False, timeout=5) as http:
            while time.monotonic() < deadline:
                if self._process is None or self._process.poll() is not None:
                    break
                try:
                    if http.get(f"{self.url}/readyz").status_code == 200:
                        return
                except httpx2.TransportError:
                    pass
                time.sleep(0.2)
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        raise NoServiceError(f"the service did not start at {self.url}; its log ends with:\n{tail}")


@dataclass(frozen=True)
class Fitted:
    """Features of a checkpoint at one hook point."""

    decoder: Tensor
    """[m, d_model] rows in the order of ids. Normalisation scales a source by one number, so directions are those of
    the residual stream"""
    energy_share: Tensor
    """[m] share of the stream's mean square along each row"""


def energy_shares(stream: ActivationSet, hook_point: str, directions: Tensor) -> Tensor:
    """E<x, d>^2 / (||d||^2 E||x||^2) over the valid positions, without centring; float64 [m]."""
    moments = torch.zeros(stream.hook_points[hook_point], stream.hook_points[hook_point], dtype=torch.float64)
    for start in range(0, stream.n_positions, BLOCK):
        rows = slice(start, min(start + BLOCK, stream.n_positions))
        x = stream.read(hook_point, rows)[torch.from_numpy(stream.valid[rows])].double()
        moments += x.T @ x
    D = torch.nn.functional.normalize(directions.double(), dim=1)
    shares: Tensor = ((D @ moments) * D).sum(1) / moments.trace()
    return shares


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
