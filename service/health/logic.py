"""Readiness of the service."""

from collections.abc import Callable

import structlog
from sqlalchemy.exc import SQLAlchemyError

from featurewatch.service.health import queries
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.clock import database_now
from featurewatch.service.kit.db import Database
from featurewatch.service.migrate import SchemaError, check_connection

log = structlog.get_logger("featurewatch.health")


def readiness(database: Database, artifacts: ArtifactStore) -> dict[str, str]:
    """Check -> `ok`, or what is wrong."""
    return {
        "database": _run(lambda: _ping(database)),
        "schema": _run(lambda: _schema(database)),
        "artifacts": _run(lambda: _artifacts(artifacts)),
    }


def workers(database: Database) -> tuple[int, int] | None:
    """Number of workers and of stuck workers; None if the database cannot be reached."""
    try:
        with database.read() as session:
            return queries.workers(session, database_now(session))
    except SQLAlchemyError as error:
        log.warning("not ready", error=str(error))
        return None


def _run(check: Callable[[], None]) -> str:
    try:
        check()
    except SchemaError as error:
        return str(error)
    except (SQLAlchemyError, OSError) as error:
        # The message may contain addresses and user names, so it goes only to the log.
        log.warning("not ready", error=str(error))
        return f"not reachable ({type(error).__name__})"
    return "ok"


def _ping(database: Database) -> None:
    with database.read() as session:
        queries.ping(session)


def _schema(database: Database) -> None:
    with database.reader.connect() as connection:
        check_connection(connection)


def _artifacts(artifacts: ArtifactStore) -> None:
    if artifacts.is_local:
        artifacts.fs.makedirs(artifacts.base, exist_ok=True)
    artifacts.fs.exists(artifacts.base)
