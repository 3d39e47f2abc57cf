"""A client of the whole application: real middleware, real database of either kind, real artifact folder."""

from collections.abc import Iterator
from typing import cast

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from featurewatch.service.app import create_app
from featurewatch.service.config import Settings
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.db import Database


@pytest.fixture
def api_settings(tmp_path, database_url: str) -> Settings:
    """Settings without a broker: the API needs none."""
    return Settings(
        data_dir=tmp_path / "data",
        database_url=database_url,
        roots=str(tmp_path),
        stores="hf://,s3://,gs://b",
        require_keys=False,
        log_level="ERROR",
    )


@pytest.fixture
def app(api_settings: Settings) -> FastAPI:
    """The application; it starts with `client`."""
    return create_app(api_settings)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """A client that needs no key."""
    with TestClient(app, base_url="http://localhost") as client:
        yield client


@pytest.fixture
def database(app: FastAPI, client: TestClient) -> Database:
    """The application's own database."""
    return cast(Database, app.state.database)


@pytest.fixture
def artifacts(app: FastAPI, client: TestClient) -> ArtifactStore:
    """The application's own artifact store."""
    return cast(ArtifactStore, app.state.artifacts)
