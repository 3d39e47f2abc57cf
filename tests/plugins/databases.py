"""Fixtures: fresh, migrated databases of either kind, and a broker. Servers start when the first test needs them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.plugins.lanes import check_lane

if TYPE_CHECKING:
    from featurewatch.service.config import Settings
    from featurewatch.service.kit.db import Database
    from tests.services import Postgres, Valkey


@pytest.fixture(scope="session")
def postgres(pytestconfig: pytest.Config) -> Iterator[Postgres]:
    """The session's Postgres server (one per process of pytest-xdist)."""
    from tests.services import postgres_server

    check_lane(pytestconfig, "postgres")
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def valkey(pytestconfig: pytest.Config) -> Iterator[Valkey]:
    """The session's Valkey server (one per process of pytest-xdist)."""
    from tests.services import valkey_server

    check_lane(pytestconfig, "broker")
    with valkey_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres: Postgres) -> Iterator[str]:
    """Name of a migrated database that tests get clones of."""
    from featurewatch.service import migrate
    from featurewatch.service.config import Settings

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
    from featurewatch.service import migrate
    from featurewatch.service.config import Settings

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
    from featurewatch.service.kit.db import Database

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
    from featurewatch.service.config import Settings

    return Settings(
        data_dir=tmp_path / "data",
        database_url=database_url,
        broker_url=broker_url,
        roots=str(tmp_path),
        stores="hf://,s3://,gs://b,memory://",
        poll_seconds=0.05,
    )
