"""Backs up and restores a SQLite database while it is in use. For Postgres, use `pg_dump` and `pg_restore`."""

import sqlite3
import uuid
from contextlib import closing
from pathlib import Path

from featurewatch.service.kit.db import SQLITE_BUSY_TIMEOUT_S


class BackupError(RuntimeError):
    """The backup failed; the message says why."""


def backup(database: Path, to: Path) -> int:
    """Write a consistent, verified copy of a database to one file. Returns its size in bytes.

    Others may write to the database meanwhile.
    """
    if to.exists():
        raise BackupError(f"{to} already exists; choose another file name")
    part = to.with_name(f".{to.name}.{uuid.uuid4().hex}")
    try:
        with closing(_open(database)) as source, closing(sqlite3.connect(part)) as target:
            source.backup(target)  # in a single step, so that concurrent writers do not restart it
            target.execute("PRAGMA journal_mode = DELETE")
            _check(target, database)
        part.rename(to)
    finally:
        part.unlink(missing_ok=True)
    return to.stat().st_size


def restore(copy: Path, database: Path) -> None:
    """Replace a database with a copy, in one transaction."""
    with closing(_open(copy)) as source:
        _check(source, copy)
        database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with closing(sqlite3.connect(database, timeout=SQLITE_BUSY_TIMEOUT_S)) as target:
            source.backup(target)  # works while others have it open: they see either the old rows or the new ones


def _open(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise BackupError(f"the database {path} does not exist")
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=SQLITE_BUSY_TIMEOUT_S)


def _check(connection: sqlite3.Connection, path: Path) -> None:
    try:
        result = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        result = str(error)
    if result != "ok":
        raise BackupError(f"{path} is corrupt: {result}")
