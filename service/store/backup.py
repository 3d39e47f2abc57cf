"""Copies of a SQLite database while it is in use, and back. Postgres has `pg_dump` and `pg_restore`."""

import sqlite3
import uuid
from contextlib import closing
from pathlib import Path

from featurewatch.service.kit.db import SQLITE_BUSY_TIMEOUT_S


class BackupError(RuntimeError):
    """There is no whole copy; the message says why."""


def backup(database: Path, to: Path) -> int:
    """Copy a database that others may write to meanwhile; its bytes. The copy is one moment's, one file, and whole."""
    if to.exists():
        raise BackupError(f"{to} is there already; name a file that is not")
    part = to.with_name(f".{to.name}.{uuid.uuid4().hex}")
    try:
        with closing(_open(database)) as source, closing(sqlite3.connect(part)) as target:
            source.backup(target)  # in one step: writers go on beside it, and it need not start again
            target.execute("PRAGMA journal_mode = DELETE")
            _check(target, database)
        part.rename(to)
    finally:
        part.unlink(missing_ok=True)
    return to.stat().st_size


def restore(copy: Path, database: Path) -> None:
    """Put a copy in the place of a database, in one transaction: its old rows are gone."""
    with closing(_open(copy)) as source:
        _check(source, copy)
        database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with closing(sqlite3.connect(database, timeout=SQLITE_BUSY_TIMEOUT_S)) as target:
            source.backup(target)  # also where others have it open; they see the old rows or the new ones


def _open(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise BackupError(f"there is no database {path}")
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=SQLITE_BUSY_TIMEOUT_S)


def _check(connection: sqlite3.Connection, path: Path) -> None:
    try:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        raise BackupError(f"{path} is damaged: {found}")
