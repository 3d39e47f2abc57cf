"""Database sessions of a request.

`WriteSession` is the one transaction of a request. The transaction middleware (service.audit.middleware) commits it
when the route has returned and before the first byte of the response is sent, so a client that reads `201` can rely on
it. An error status rolls it back. Nothing else commits.
"""

from collections.abc import AsyncIterator
from typing import Annotated, cast

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from featurewatch.service.config import Settings
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.db import Database


def database_of(request: Request) -> Database:
    """The installation's database."""
    return cast(Database, request.app.state.database)


# Coroutines, because FastAPI runs plain functions in another thread.
async def _database(request: Request) -> Database:
    return database_of(request)


async def _settings(request: Request) -> Settings:
    return cast(Settings, request.app.state.settings)


async def _artifacts(request: Request) -> ArtifactStore:
    return cast(ArtifactStore, request.app.state.artifacts)


async def read_session(request: Request) -> AsyncIterator[Session]:
    """A read-only session, closed before the response is sent. It connects on first use."""
    # It has nothing to commit, so closing it needs no other thread.
    with database_of(request).read() as session:
        yield session


async def write_session(request: Request) -> Session:
    """The session of this request's transaction, once it is its turn. Only POST, PUT, PATCH and DELETE have one."""
    session = getattr(request.state, "write_session", None)
    if session is None:
        raise RuntimeError(
            f"{request.method} {request.url.path} has no transaction; only POST, PUT, PATCH and DELETE have one"
        )
    await request.state.write_turn.take()
    return cast(Session, session)


ReadSession = Annotated[Session, Depends(read_session, scope="function")]
WriteSession = Annotated[Session, Depends(write_session)]
AppDatabase = Annotated[Database, Depends(_database)]
AppSettings = Annotated[Settings, Depends(_settings)]
AppArtifacts = Annotated[ArtifactStore, Depends(_artifacts)]
