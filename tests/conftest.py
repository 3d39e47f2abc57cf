"""Fixtures: every test of the store runs on SQLite and on Postgres, on a fresh database, next to a fresh broker."""

import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# Before anything imports torch: the tests run as several processes on few cores, and idle threads that spin
# for work take the cores from those that have some.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# No test asks a hub on the network: what is in a test's own cache is all that there is.
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest
import uvicorn
from sqlalchemy import update

from featurewatch.service import migrate
from featurewatch.service.app import create_app
from featurewatch.service.config import Settings
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.crypto import SecretBox
from featurewatch.service.kit.db import Database
from featurewatch.service.models import Source
from tests import filled
from tests.services import Postgres, Valkey, free_port, postgres_server, valkey_server, wait_until

hypothesis.settings.load_profile("ci")  # the same examples each time, and none is too slow


def pytest_addoption(parser: pytest.Parser) -> None:
    """What `make chaos` does more of than `make test`."""
    parser.addoption("--onboardings", type=int, default=3, help="of tests/e2e/test_chaos.py, for each database")
    parser.addoption("--chaos-seed", type=int, default=0, help="of the order and the times of disturbances")


LONGEST = ("test_kill.py", "test_chaos.py", "test_docs_commands.py", "test_full_disk.py")
"""Modules of few tests that take minutes."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several processes none is left with a long module at the end, while the others have nothing to do.

    Each module goes to one process, in this order (`--no-loadscope-reorder`): the longest, then those of many tests.
    """
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.name not in LONGEST, -sizes[item.path]))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the developer's shell reaches a test."""
    for name in list(os.environ):
        if name.startswith("FEATUREWATCH_") and not name.startswith("FEATUREWATCH_TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The session's Postgres server (one per process of pytest-xdist)."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """The session's Valkey server (one per process of pytest-xdist)."""
    with valkey_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres: Postgres) -> Iterator[str]:
    """Name of a migrated database that tests get clones of."""
    name = postgres.create(prefix="fw_template")
    try:
        migrate.upgrade(Settings(database_url=postgres.database_url(name)))
        yield name
    finally:
        postgres.drop_spare()
        postgres.drop(name)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file that tests get copies of."""
    path = tmp_path_factory.mktemp("template") / "featurewatch.db"
    migrate.upgrade(Settings(database_url=f"sqlite:///{path}", data_dir=path.parent))
    return path


@pytest.fixture(params=["sqlite", "postgres"])
def engine_kind(request: pytest.FixtureRequest) -> str:
    """The kind of database of this test."""
    return str(request.param)


@pytest.fixture
def database_url(engine_kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of a fresh, migrated database."""
    if engine_kind == "sqlite":
        path = tmp_path / "featurewatch.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    with server.lend(request.getfixturevalue("postgres_template")) as name:
        yield server.database_url(name)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A fresh, migrated database."""
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def broker_url(valkey: Valkey) -> str:
    """URL of the broker, emptied."""
    valkey.flush()
    return valkey.url


@pytest.fixture
def settings(tmp_path: Path, database_url: str, broker_url: str) -> Settings:
    """Settings of an installation in this test's folder; only files in that folder may be read."""
    return Settings(
        data_dir=tmp_path / "data",
        database_url=database_url,
        broker_url=broker_url,
        roots=str(tmp_path),
        stores="hf://,s3://,gs://b,memory://",
        poll_seconds=0.05,
    )


@pytest.fixture(scope="session")
def filled_url(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[str]:
    """URL of a live server over a database with one of everything, for tests that change little of it."""
    folder = tmp_path_factory.mktemp("filled")
    settings = Settings(
        data_dir=folder, require_keys=False, label_url="http://127.0.0.1:9/v1", label_model="none", log_level="CRITICAL"
    )
    shutil.copyfile(sqlite_template, folder / "featurewatch.db")
    database = Database(settings.resolved_database_url)
    with database.write() as session:
        filled.fill(session, ArtifactStore(settings.artifacts_uri, folder / "cache"), SecretBox(settings))
        session.execute(update(Source).values(activations="kept"))  # else nothing can be calibrated
    database.close()
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    assert wait_until(lambda: server.started, 20)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
