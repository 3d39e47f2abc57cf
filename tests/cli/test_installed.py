"""The wheel, installed and used in a folder whose own packages are named like folders of the source."""

import os
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
from contextlib import closing
from pathlib import Path

import httpx2
import pytest

from featurewatch.service import __version__
from tests.cli.installed import copy_source, make_environment
from tests.cli.live import Up
from tests.services import wait_until

BUILD_SDIST = "from setuptools import build_meta; build_meta.build_sdist('dist')"
NOTEBOOK = """
import service, workers, migrations
import featurewatch
from featurewatch import Client, Family
assert (service.OWNER, workers.OWNER, migrations.OWNER) == ("user",) * 3
print(featurewatch.__file__, Client.__module__, Family.__module__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    copy_source(folder)
    pip = [sys.executable, "-m", "pip", "wheel", ".", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", "dist"], cwd=folder, check=True)
    return next((folder / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def home(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel installed."""
    home = tmp_path_factory.mktemp("home")
    make_environment(home)
    pip = [home / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([*pip, wheel], check=True)
    return home


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Variables of a user who works in `tmp_path`, which has packages of the same names."""
    for name in ("service", "workers", "migrations"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("OWNER = 'user'\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return {"PYTHONPATH": str(tmp_path), "FEATUREWATCH_DATA_DIR": str(tmp_path / "data")}


def run(*command: str | Path, environment: dict[str, str]) -> str:
    """Run a command of the installation; its output."""
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_one_top_level_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} == {"featurewatch", f"featurewatch-{__version__}.dist-info"}
    assert {"service", "workers", "migrations"} < {name.split("/")[1] for name in names}


def test_the_sdist_has_the_files_of_the_wheel_once(wheel: Path, tmp_path: Path) -> None:
    copy_source(tmp_path)
    subprocess.run([sys.executable, "-c", BUILD_SDIST], cwd=tmp_path, capture_output=True, check=True)
    with tarfile.open(next((tmp_path / "dist").glob("*.tar.gz"))) as archive:
        members = archive.getmembers()
    assert all(member.isreg() or member.isdir() for member in members), "no links: not everybody can unpack them"
    sources = {member.name.partition("/")[2] for member in members if member.isreg() and member.name.count("/") > 1}
    with zipfile.ZipFile(wheel) as archive:
        installed = {name for name in archive.namelist() if name.startswith("featurewatch/")}
    assert {name for name in sources if not name.startswith("featurewatch.egg-info/")} == installed


def test_a_notebook_imports_it_beside_packages_of_its_own(home: Path, environment: dict[str, str]) -> None:
    place, client, family = run(home / "bin" / "python", "-c", NOTEBOOK, environment=environment).split()
    assert Path(place).is_relative_to(home)
    assert (client, family) == ("featurewatch.service.client.sync.client", "featurewatch.family")


def test_the_command_and_its_migrations_run(home: Path, environment: dict[str, str], tmp_path: Path) -> None:
    command = home / "bin" / "featurewatch"
    assert run(command, "--version", environment=environment).split() == ["featurewatch", __version__]
    assert "checkpoint" in run(command, "--help", environment=environment)
    run(command, "db", "upgrade", environment=environment)
    with closing(sqlite3.connect(tmp_path / "data" / "featurewatch.db")) as connection:
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
    worker = run(home / "bin" / "python", "-m", "featurewatch.workers", "--help", environment=environment)
    assert worker.startswith("usage: python -m featurewatch.workers")


def test_the_service_starts_with_its_worker(home: Path, environment: dict[str, str], tmp_path: Path) -> None:
    up = Up(tmp_path, program=[str(home / "bin" / "featurewatch")], env=environment)
    try:
        assert wait_until(lambda: httpx2.get(f"{up.url}/readyz").json()["workers"]["running"] == 1, 60)
    finally:
        assert up.stop() == 0
