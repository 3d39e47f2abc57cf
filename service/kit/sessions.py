"""Database sessions of a request.

`WriteSession` is one transaction per request. The transaction middleware (service.audit.middleware) commits it after
the route has made its answer and before the first byte of that answer is sent: who reads `201` may rely on it. An
error status rolls it back. Nothing else commits.
"""

from collections.abc import Iterator
from typing import Annotated, cast

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from service.config import Settings
from service.kit.artifacts import ArtifactStore
from service.kit.db import Database


def get_database(request: Request) -> Database:
    """The installation's database."""
    return cast(Database, request.app.state.database)


def get_settings(request: Request) -> Settings:
    """The installation's settings."""
    return cast(Settings, request.app.state.settings)


def get_artifacts(request: Request) -> ArtifactStore:
    """The installation's artifact store."""
    return cast(ArtifactStore, request.app.state.artifacts)


def read_session(request: Request) -> Iterator[Session]:
    """A session that only reads, given back before the response is sent."""
    with get_database(request).read() as session:
        yield session


async def write_session(request: Request) -> Session:
    """The session of this request's transaction, when it is its turn; only POST, PUT, PATCH and DELETE have one."""
    session = getattr(request.state, "write_session", None)
    if session is None:
        raise RuntimeError(f"{request.method} {request.url.path} has no transaction: only methods that write have one")
    await request.state.write_turn.take()
    return cast(Session, session)


ReadSession = Annotated[Session, Depends(read_session, scope="function")]
WriteSession = Annotated[Session, Depends(write_session)]
AppDatabase = Annotated[Database, Depends(get_database)]
AppSettings = Annotated[Settings, Depends(get_settings)]
AppArtifacts = Annotated[ArtifactStore, Depends(get_artifacts)]
