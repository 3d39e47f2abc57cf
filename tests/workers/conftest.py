"""Helpers of the worker tests: queued runs, workers in this process, and real worker processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks.webhooks

from featurewatch.service.config import Settings
from featurewatch.service.kit import clock
from featurewatch.service.kit.db import Database
from featurewatch.service.models import Attempt, Run
from featurewatch.service.runs import logic, queries
from featurewatch.service.store.ledger import open_store
from featurewatch.service.webhooks import logic as webhooks
from featurewatch.service.webhooks.schemas import WebhookCreate
from featurewatch.workers import runner
from featurewatch.workers.sweeps import Sweeper
from tests import factories
from tests.workers.receivers import Receiver
from tests.workers.toy import PIPELINES

ROOT = Path(__file__).parents[2]


class Installation:
    """A database with a family, and ways to queue, run and look at runs."""

    def __init__(self, settings: Settings, database: Database, folder: Path) -> None:
        self.settings, self.database, self.folder = settings, database, folder
        self.artifacts = open_store(settings, database)

    def add_family(self, name: str = "smol") -> str:
        with self.database.write() as session:
            return factories.family(session, name).id

    def queue(self, family_id: str, kind: str = "steps", *, steps: int = 2, seconds: float = 0.0, **more: Any) -> str:
        """A queued run of a registered checkpoint; its id."""
        with self.database.write() as session:
            family = session.get_one(factories.Family, family_id)
            name = f"v{time.monotonic_ns()}"
            checkpoint = factories.checkpoint(session, family, name, state="registered")
            params = {"folder": str(self.folder / name), "steps": steps, "seconds": seconds}
            run = logic.create(
                session, family_id=family_id, checkpoint_id=checkpoint.id, kind=kind, params=params, **more
            )
            return run.id

    def run_next(self, **options: Any) -> str | None:
        return runner.run_next(
            **{
                "settings": self.settings,
                "database": self.database,
                "artifacts": self.artifacts,
                "pipelines": PIPELINES,
            }
            | options
        )

    def run(self, run_id: str) -> Run:
        with self.database.read() as session:
            return session.get_one(Run, run_id)

    def attempts(self, run_id: str) -> Sequence[Attempt]:
        with self.database.read() as session:
            return session.scalars(queries.attempts(run_id).order_by(Attempt.number)).all()

    def checkpoint_state(self, run_id: str) -> str:
        with self.database.read() as session:
            checkpoint_id = session.get_one(Run, run_id).checkpoint_id
            return session.get_one(factories.Checkpoint, checkpoint_id).state

    def folder_of(self, run_id: str) -> Path:
        return Path(self.run(run_id).params["folder"])


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    """Settings without a broker, and with a short lease."""
    return Settings(
        data_dir=tmp_path / "data",
        database_url=database_url,
        roots=str(tmp_path),
        stores="hf://,memory://",
        poll_seconds=0.05,
        lease_seconds=3.0,
        secret_key="a key for the tests, long enough",
        webhook_allow="127.0.0.1/32",
    )


@pytest.fixture
def installation(settings: Settings, database: Database, tmp_path: Path) -> Installation:
    return Installation(settings, database, tmp_path / "runs")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver of webhooks."""
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def register(settings: Settings, database: Database) -> Callable[..., tuple[str, str]]:
    """Registers a webhook; its id and secret."""

    def register(url: str, **more: Any) -> tuple[str, str]:
        with database.write() as session:
            webhook, secret = webhooks.create(session, settings, WebhookCreate(url=url, **more))
            return webhook.id, secret

    return register


@pytest.fixture
def sweeper(settings: Settings, database: Database) -> Sweeper:
    return Sweeper(settings, database, publish=None)


@pytest.fixture
def time_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Moves all clocks: the service's, the database's, and that of receivers who verify signatures."""
    real, database, ahead = clock.utcnow, clock.database_now, timedelta()

    def move(by: timedelta) -> None:
        nonlocal ahead
        ahead += by

    class Moved(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return clock.utcnow()

    monkeypatch.setattr(clock, "utcnow", lambda: real() + ahead)
    monkeypatch.setattr(clock, "database_now", lambda session: database(session) + ahead)
    monkeypatch.setattr(standardwebhooks.webhooks, "datetime", Moved)
    return move


@pytest.fixture
def start(settings: Settings) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts real processes with the installation's settings; they are killed after the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*command: str, **environment: str) -> subprocess.Popen[bytes]:
        variables = {
            "FEATUREWATCH_DATA_DIR": str(settings.data_dir),
            "FEATUREWATCH_DATABASE_URL": settings.database_url,
            "FEATUREWATCH_POLL_SECONDS": "0.1",
            "FEATUREWATCH_LEASE_SECONDS": str(settings.lease_seconds),
            "FEATUREWATCH_SECRET_KEY": settings.secret_key.get_secret_value(),
            "FEATUREWATCH_LOG_JSON": "false",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=os.environ | variables | environment,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def start_worker(start: Callable[..., subprocess.Popen[bytes]]) -> Callable[..., subprocess.Popen[bytes]]:
    """Starts `python -m featurewatch.workers` with the toy pipelines, and with variables of its own."""
    command = ("featurewatch.workers", "--pipelines", "tests.workers.toy:PIPELINES")
    return lambda **environment: start(*command, **environment)


QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING")


@pytest.fixture
def start_celery(
    start: Callable[..., subprocess.Popen[bytes]], broker_url: str
) -> Callable[..., subprocess.Popen[bytes]]:
    """Starts `celery` with the settings of the installation."""

    def start_celery(app: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        variables = {"FEATUREWATCH_BROKER_URL": broker_url} | environment
        return start("celery", "-A", app, "worker", *arguments, *QUIET, **variables)

    return start_celery


@pytest.fixture
def start_sweeps(start_celery: Callable[..., subprocess.Popen[bytes]]) -> Callable[[], subprocess.Popen[bytes]]:
    """Starts the Celery worker that sweeps."""
    return lambda: start_celery("featurewatch.workers.app", "--beat", "-Q", "sweeps", "-c", "1", "-n", "sweeps@%h")


def working_pid(installation: Installation, run_id: str) -> int:
    """The process that works on a run."""
    return int(wait_for(lambda: installation.run(run_id).worker).split(":")[1])


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """The condition's first true answer; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)
    return answer
