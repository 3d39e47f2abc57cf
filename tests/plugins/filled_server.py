"""Fixture: a live server with one of everything."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def filled_url(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[str]:
    """URL of a live server over a database with one of everything, for tests that change little of it."""
    import uvicorn
    from sqlalchemy import update

    from featurewatch.service.app import create_app
    from featurewatch.service.config import Settings
    from featurewatch.service.kit.artifacts import ArtifactStore
    from featurewatch.service.kit.crypto import SecretBox
    from featurewatch.service.kit.db import Database
    from featurewatch.service.models import Source
    from tests import filled
    from tests.services import free_port, wait_until

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
