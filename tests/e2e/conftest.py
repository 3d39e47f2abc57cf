"""Fixtures of the tests that run everything: an installation for each module and each kind of database."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.parts import Service


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def module_database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str]]:
    """A folder for an installation, and the URL of its fresh, migrated database."""
    folder = tmp_path_factory.mktemp(f"installation-{request.param}")
    if request.param == "sqlite":
        shutil.copyfile(request.getfixturevalue("sqlite_template"), folder / "featurewatch.db")
        yield folder, f"sqlite:///{folder}/featurewatch.db"
        return
    server = request.getfixturevalue("postgres")
    name = server.create(template=request.getfixturevalue("postgres_template"))
    yield folder, server.database_url(name)
    server.drop(name)


@pytest.fixture(scope="module")
def service(module_database: tuple[Path, str]) -> Iterator[Service]:
    """`featurewatch up` with its worker; only files in its folder may be read."""
    with Service(*module_database) as running:
        yield running
