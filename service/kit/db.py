"""Engines, sessions and column types: the same code on SQLite and Postgres.

SQLite serves many readers and one writer. Writers take the lock at the start (`BEGIN IMMEDIATE`): a deferred
transaction that reads first and then writes fails at once, whatever the timeout, if another writer has committed in
between. Reads have a separate engine, so they never wait for a writer.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from pydantic_core import from_json
from sqlalchemy import CursorResult, DateTime, Dialect, Engine, LargeBinary, MetaData, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.types import JSON, TypeDecorator

AWAY = (OperationalError, InterfaceError)
"""Errors of the driver when the database is unreachable or drops the connection."""
SQLITE_BUSY_TIMEOUT_S = 30
PING_AFTER_SECONDS = 1.0
"""A connection that was idle for longer is pinged first: the server may have been restarted."""
ARTIFACT = {"artifact": True}
"""`info` of a column with names of artifacts. An artifact that no such column names may be removed."""


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware UTC time. SQLite stores no time zone, so it is added on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True
    python_type = datetime

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("cannot store a time without a time zone; use featurewatch.service.kit.clock.utcnow()")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Base class of all tables. Constraints are named, so that migrations can find them on both databases."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime,
        dict[str, Any]: JSON,
        list[Any]: JSON,
        list[str]: JSON,
        bytes: LargeBinary,
    }

    def as_dict(self) -> dict[str, Any]:
        """Column -> value."""
        return {column.key: getattr(self, column.key) for column in self.__table__.columns}


class Database:
    """The two engines of an installation, and the only place where transactions are opened.

    `write()` commits at the end and rolls back on an error; `read()` refuses to write. Code that gets a session never
    commits or rolls back.
    """

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            if self.url.database in (None, "", ":memory:"):
                raise ValueError("processes cannot share an in-memory SQLite database; use a file")
            Path(str(self.url.database)).expanduser().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.writer = _sqlite_engine(url, begin="BEGIN IMMEDIATE")
            self.reader = _sqlite_engine(url, begin="BEGIN")
        else:
            self.writer = _postgres_engine(url)
            # Each statement sees all committed data, and an explicit transaction would cost two extra round trips.
            self.reader = self.writer.execution_options(isolation_level="AUTOCOMMIT")
        event.listen(self.reader, "before_execute", _refuse_to_write)
        self._thread = threading.local()

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The engines that have their own connection pool."""
        return (self.writer, self.reader) if self.is_sqlite else (self.writer,)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session for one transaction that writes.

        It takes SQLite's lock at the start, so that queries inside it for the time or overdue work are not outdated by
        a long wait.
        """
        with Session(self.writer, expire_on_commit=False) as session, session.begin():
            if self.is_sqlite:  # on Postgres, the first statement may still set the isolation level
                session.connection()
            outer, self._thread.writing = self.is_writing, True
            try:
                yield session
            finally:
                self._thread.writing = outer

    @property
    def is_writing(self) -> bool:
        """Whether this thread is inside `write()`. On SQLite, a second one would wait for the first."""
        return getattr(self._thread, "writing", False)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A read-only session."""
        with Session(self.reader, autoflush=False) as session:
            yield session

    def open_write(self) -> Session:
        """A session for the middleware of a request, which commits or closes it itself."""
        return Session(self.writer, expire_on_commit=False)

    def close(self) -> None:
        """Close all connections."""
        for engine in self.engines:
            engine.dispose()


def _refuse_to_write(_connection: object, statement: Any, *_values: object) -> None:
    # It would be committed at once on Postgres, and never on SQLite.
    if getattr(statement, "is_dml", False):
        raise RuntimeError("this session is read-only; use Database.write()")


def _engine(url: str, **options: Any) -> Engine:
    # Rows of lists have several small JSON columns; `json.loads` would take longer than the query.
    return create_engine(url, json_deserializer=from_json, **options)


def _postgres_engine(url: str) -> Engine:
    """An engine that pings connections before reuse, unless they were used a moment ago."""
    # LIFO: the server process of the last connection has statements and rows cached, and few are in use at once.
    engine = _engine(url, pool_size=10, max_overflow=20, pool_use_lifo=True)

    @event.listens_for(engine, "checkin")
    def on_checkin(_connection: object, record: Any) -> None:
        record.info["used"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def on_checkout(connection: Any, record: Any, _proxy: object) -> None:
        if time.monotonic() - record.info.get("used", 0.0) > PING_AFTER_SECONDS:
            try:
                engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error as error:
                raise InvalidatePoolError from error  # the server was restarted: discard all connections

    return engine


def _sqlite_engine(url: str, begin: str) -> Engine:
    engine = _engine(url, connect_args={"timeout": SQLITE_BUSY_TIMEOUT_S, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def on_connect(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions itself
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    return engine


def changes_one_row(session: Session, statement: Any) -> bool:
    """Execute a conditional UPDATE of one row; whether its condition held."""
    result = session.execute(statement.execution_options(synchronize_session=False))
    return isinstance(result, CursorResult) and result.rowcount == 1
