"""Data folders are their user's alone, unless the operator shares them."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from featurewatch.service.app import create_app
from featurewatch.service.config import Settings
from featurewatch.service.kit.crypto import KEY_FILE
from featurewatch.service.kit.logs import configure_logging
from featurewatch.service.kit.private import keep_private
from tests.cli.live import within


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """A loose one, as most shells have it."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def loose(tmp_path: Path, sqlite_template: Path) -> Path:
    """A data folder as versions before made it."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o755)
    (folder / "featurewatch.db").write_bytes(sqlite_template.read_bytes())
    return folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_api_tightens_a_loose_folder_and_writes_private_files(loose: Path) -> None:
    settings = Settings(data_dir=loose, require_keys=False, log_level="ERROR")
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        assert mode(loose) == 0o700
        assert client.post("/v1/webhooks", json={"url": "https://ci.example/x"}).status_code == 201
        assert mode(loose / KEY_FILE) == 0o600
        with client.app.state.artifacts.create("fam_1/codes/one") as path:
            path.write_bytes(b"x")
        made = [*(loose / "artifacts").rglob("*")]
        assert made and {mode(each) for each in made} == {0o700, 0o600}
    assert os.umask(0o022) == 0o022, "who embeds the application gets the umask back"


def test_a_folder_that_is_shared_on_purpose_stays_so(loose: Path) -> None:
    settings = Settings(data_dir=loose, private_files=False, require_keys=False, log_level="ERROR")
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        with client.app.state.artifacts.create("fam_1/one") as path:
            path.write_bytes(b"x")
        assert mode(loose) == 0o755
        assert mode(loose / "artifacts/fam_1/one") == 0o644
        client.post("/v1/webhooks", json={"url": "https://ci.example/x"})
        assert mode(loose / KEY_FILE) == 0o600, "the key is nobody else's in any case"


def test_commands_on_the_server_write_private_files(tmp_path: Path) -> None:
    """A new installation, made by `db upgrade` and `key create`, and its backup."""
    folder, copy = tmp_path / "new" / "data", tmp_path / "copy.db"
    environment = {"FEATUREWATCH_DATA_DIR": str(folder)}
    for command in (["db", "upgrade"], ["key", "create", "ci"], ["db", "backup", str(copy)]):
        done = within(*command, env=environment)
        assert done.returncode == 0, done.stderr
    assert mode(folder) == 0o700
    files = [path for path in folder.iterdir() if path.is_file()]
    assert folder / "featurewatch.db" in files
    assert {mode(path) for path in [*files, copy]} == {0o600}


def test_a_folder_of_somebody_else_is_told(loose: Path, monkeypatch, capfd) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)  # the tests may run as root, who may change any mode
    settings = Settings(data_dir=loose)
    configure_logging(settings)
    keep_private(settings)
    told = capfd.readouterr()
    assert "FEATUREWATCH_PRIVATE_FILES" in told.out + told.err
