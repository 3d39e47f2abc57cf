"""What the commands in `database` do. A separate module because it imports the whole service, which is slow."""

import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy.engine import make_url

from featurewatch.service import migrate
from featurewatch.service.cli import base
from featurewatch.service.cli.host import local
from featurewatch.service.config import Settings
from featurewatch.service.deletions import families as deletions
from featurewatch.service.deletions import queries as deletion_queries
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.clock import database_now
from featurewatch.service.kit.db import Database
from featurewatch.service.reports import storage
from featurewatch.service.store import backup as backups
from featurewatch.service.store import copying, damage, logic, queries
from featurewatch.service.store.ledger import open_store


def upgrade() -> None:
    """Bring the configured database to this version's schema."""
    local.upgrade(Settings())


def check(*, deep: bool) -> dict[str, Any]:
    """What the installation contains, and what is damaged. UsageError if the schema is of another version.

    deep: read every referenced artifact in full.
    """
    settings = Settings()
    local.check(settings)
    with closing(Database(settings.resolved_database_url)) as database:
        artifacts = open_store(settings, database)
        with database.read() as session:
            result = {"schema": migrate.newest()} | storage.inspect(session, artifacts)
        if deep:
            result |= _verify(database, settings)
        with database.read() as session:
            for row in (*result["damaged"], *result["missing"]):
                row["depends"] = queries.dependents(session, row["artifact"])
                row["rebuild"] = damage.advice(row["artifact"])
    return result


def _verify(database: Database, settings: Settings) -> dict[str, Any]:
    with database.read() as session:
        names = {name for family_id in queries.families(session) for name in queries.references(session, family_id)}
    settings.cache_dir.mkdir(parents=True, exist_ok=True)
    # An empty cache: the files of a remote store are verified, not the copies on this machine.
    with TemporaryDirectory(prefix="check-", dir=settings.cache_dir) as empty:
        return damage.verify_all(open_store(settings, database, cache=Path(empty)), names)


def copy(from_: str) -> list[dict[str, Any]]:
    """Copy a database into the configured one. Returns what was copied, by table."""
    settings, url = Settings(), from_ if "://" in from_ else f"sqlite:///{Path(from_).expanduser().resolve()}"
    if make_url(url) == make_url(settings.resolved_database_url):
        raise base.UsageError("source and target are the same database; name the target in FEATUREWATCH_DATABASE_URL")
    if (file := _file(url)) is not None and not file.is_file():
        raise base.UsageError(f"no database at {file}")
    try:
        migrate.check(Settings(database_url=url))
    except migrate.SchemaError as error:
        raise base.UsageError(
            f"{error} This is the source; to upgrade it, name it in FEATUREWATCH_DATABASE_URL."
        ) from error
    local.upgrade(settings)
    try:
        with (
            closing(Database(url)) as source,
            closing(Database(settings.resolved_database_url)) as target,
            source.write() as reading,
            target.write() as session,
        ):
            return [part._asdict() for part in copying.copy(reading, session)]
    except copying.CopyError as error:
        raise base.UsageError(str(error)) from error


def vacuum(*, dry_run: bool) -> dict[str, Any]:
    """Remove what the retention policy no longer keeps, family by family; then compact a SQLite file."""
    settings = Settings()
    removed, waiting, released, busy = dict[str, int](), dict[str, int](), list[str](), list[str]()
    with local.opened() as database:
        artifacts, before = open_store(settings, database), _size(database)
        if not dry_run:
            _finish_deletions(database, settings, artifacts)
        with database.read() as session:
            families = queries.families(session)
        for family, name in families.items():
            stored, step = artifacts.listing(family), logic.Vacuumed(left=not dry_run)
            with database.read() as session:
                now = database_now(session)
                plan = logic.plan(session, settings, family, stored, now)
                names = queries.checkpoint_names(session, plan.released)
            while step.left:
                with database.write() as session:
                    step = logic.vacuum(session, artifacts, settings, family, stored, now=now)
                removed |= step.removed
                stored = {name: size for name, size in stored.items() if name not in step.removed}
            if step.busy:
                busy.append(name)
                continue
            removed |= plan.due if dry_run else {}
            waiting |= plan.waiting
            released += names
        if database.is_sqlite and not dry_run:
            _compact(database)
        sizes = {"bytes_before": before, "bytes": _size(database)}
    return {"removed": removed, "waiting": waiting, "released": released, "busy": busy, **sizes}


def _finish_deletions(database: Database, settings: Settings, artifacts: ArtifactStore) -> None:
    """Finish the deletion of families, except for those that a worker is using."""
    with database.read() as session:
        families = deletion_queries.under_way(session)
    for family in families:
        state = "left"
        while state == "left":
            with database.write() as session:
                state = deletions.step(session, family)
        if state == "empty":
            deletions.clear(settings, artifacts, family)
            with database.write() as session:
                deletions.finish(session, family)


def backup(file: Path) -> dict[str, Any]:
    """Copy the configured SQLite database."""
    try:
        return {"file": str(file), "bytes": backups.backup(_sqlite_file("pg_dump"), file)}
    except backups.BackupError as error:
        raise base.UsageError(str(error)) from error


def restore(file: Path, *, replace: bool) -> None:
    """Replace the configured SQLite database with a backup."""
    database = _sqlite_file("pg_restore")
    if database.is_file() and not replace and _holds_rows():
        raise base.UsageError(f"{database} contains data; --replace deletes it")
    try:
        backups.restore(file, database)
    except backups.BackupError as error:
        raise base.UsageError(str(error)) from error
    local.upgrade(Settings())


def _holds_rows() -> bool:
    with local.opened() as database, database.read() as session:
        return any(queries.row_counts(session).values())


def _compact(database: Database) -> None:
    """Rewrite the file without the free pages that deleted rows leave behind."""
    with closing(database.writer.raw_connection()) as connection:
        try:
            connection.cursor().execute("VACUUM")
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.OperationalError as error:
            raise base.UsageError(f"the database is in use ({error}); try again later to reclaim its space") from error


def _size(database: Database) -> int:
    with database.read() as session:
        return queries.size(session)


def _sqlite_file(otherwise: str) -> Path:
    """Path of the configured database; UsageError if it is Postgres."""
    file = _file(Settings().resolved_database_url)
    if file is None:
        raise base.UsageError(f"the database is Postgres: use {otherwise}, see docs/operations.md")
    return file


def _file(url: str) -> Path | None:
    parsed = make_url(url)
    return Path(str(parsed.database)) if parsed.get_backend_name() == "sqlite" else None
