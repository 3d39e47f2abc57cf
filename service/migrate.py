"""Upgrades the database schema and checks that it is current. One Alembic tree for SQLite and Postgres."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, NullPool, create_engine, event, text
from sqlalchemy.engine import make_url

from featurewatch import migrations
from featurewatch.service.config import Settings
from featurewatch.service.kit.crypto import SecretKeyError
from featurewatch.service.kit.db import SQLITE_BUSY_TIMEOUT_S

_LOCK = int.from_bytes(hashlib.sha256(b"featurewatch schema").digest()[:8], signed=True)
_LOCK_TIMEOUT = "10s"


class SchemaError(RuntimeError):
    """The database's schema is not the one that this version requires."""


def upgrade(settings: Settings) -> None:
    """Upgrade the configured database to the newest schema. Safe to call from several processes at once."""
    upgrade_url(settings.resolved_database_url, settings=settings)


def upgrade_url(url: str, revision: str = "head", *, settings: Settings | None = None) -> None:
    """Upgrade the database at `url` to a revision. For older revisions, see `downgrade_url`.

    The secret key comes from `settings`, by default from the environment. Raises SchemaError, without any change, if
    data must be encrypted and no key fits.
    """
    with migrating(url) as connection, _explaining_keys():
        command.upgrade(_config(connection, settings or Settings(database_url=url)), revision)


def downgrade_url(url: str, revision: str, *, settings: Settings | None = None) -> None:
    """Downgrade the database at `url` to a revision. Newer tables and their contents are lost."""
    with migrating(url) as connection, _explaining_keys():
        command.downgrade(_config(connection, settings or Settings(database_url=url)), revision)


@contextmanager
def _explaining_keys() -> Iterator[None]:
    try:
        yield
    except SecretKeyError as error:
        raise SchemaError(f"The migration requires the secret key; nothing was changed: {error}") from error


def check(settings: Settings) -> None:
    """Raise SchemaError, which says what to do, unless the database has the newest schema."""
    engine = create_engine(settings.resolved_database_url, poolclass=NullPool)
    try:
        with engine.connect() as connection:
            check_connection(connection)
    finally:
        engine.dispose()


def check_connection(connection: Connection) -> None:
    """As `check`, on an open connection."""
    current = MigrationContext.configure(connection).get_current_revision()
    script = ScriptDirectory(str(_tree()))
    required = script.get_current_head()
    if current == required:
        return
    known = {revision.revision for revision in script.walk_revisions()}
    if current is None:
        raise SchemaError("The database has no featurewatch schema yet. Run `featurewatch db upgrade`.")
    if current in known:
        raise SchemaError(
            f"The database schema is {current}, older than {required}, which this version requires. Run "
            "`featurewatch db upgrade`."
        )
    raise SchemaError(
        f"The database schema {current} is unknown to this version, which requires {required}: a newer version of "
        "featurewatch has upgraded it. Upgrade this installation too."
    )


def newest() -> str:
    """The schema revision that this version requires."""
    return str(ScriptDirectory(str(_tree())).get_current_head())


def _tree() -> Path:
    return Path(str(migrations.__file__)).parent


def _config(connection: Connection, settings: Settings) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_tree()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes |= {"connection": connection, "settings": settings}
    return config


@contextmanager
def migrating(url: str) -> Iterator[Connection]:
    """A connection in a transaction that only one migrator can hold. All of it is committed, or nothing."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        Path(str(parsed.database)).expanduser().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        engine = _sqlite_engine(url)
    else:
        engine = create_engine(url, poolclass=NullPool)
    try:
        with engine.begin() as connection:
            if parsed.get_backend_name() == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
                # Waiting for a table in a long transaction would block every other request behind this one.
                connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
            yield connection
            if parsed.get_backend_name() == "sqlite":
                _check_references(connection)
    finally:
        engine.dispose()


def _sqlite_engine(url: str) -> Engine:
    """An engine without foreign keys: batch migrations drop the old table, which would delete its children."""
    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": SQLITE_BUSY_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def on_connect(connection: object, _record: object) -> None:
        connection.isolation_level = None  # type: ignore[attr-defined]
        connection.execute("PRAGMA journal_mode = WAL")  # type: ignore[attr-defined]
        connection.execute("PRAGMA foreign_keys = OFF")  # type: ignore[attr-defined]

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _check_references(connection: Connection) -> None:
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    if broken:
        raise SchemaError(f"The migration left rows without parents and was rolled back: {broken[:5]}")
