"""Fixtures of the tests that run everything: installations that several tests share, on each kind of database."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.inprocess import Installation
from tests.e2e.parts import Service


@contextmanager
def _installation(request: pytest.FixtureRequest, folders: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    folder = folders.mktemp(f"installation-{request.param}-")
    if request.param == "sqlite":
        shutil.copyfile(request.getfixturevalue("sqlite_template"), folder / "featurewatch.db")
        yield folder, f"sqlite:///{folder}/featurewatch.db"
        return
    server = request.getfixturevalue("postgres")
    name = server.create(template=request.getfixturevalue("postgres_template"))
    yield folder, server.database_url(name)
    server.drop(name)


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def module_database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str]]:
    """A folder for an installation of this module, and the URL of its fresh, migrated database."""
    with _installation(request, tmp_path_factory) as made:
        yield made


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`featurewatch up` with its worker; only files in its folder may be read. Each test has families of its own."""
    with _installation(request, tmp_path_factory) as made, Service(*made) as running:
        yield running


@pytest.fixture(scope="module")
def installation(module_database: tuple[Path, str]) -> Iterator[Installation]:
    """API and worker of this process, with a family that has one judged checkpoint."""
    made = Installation(*module_database)
    with made.client:
        made.begin()
        yield made
    made.database.close()
