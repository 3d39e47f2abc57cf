"""`featurewatch db ...` as it is run on a server."""

import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from featurewatch.service import migrate
from featurewatch.service.cli import base
from featurewatch.service.cli.host import local_database
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.db import Database
from featurewatch.service.models import AuditEntry, Event, Family, Unreferenced
from featurewatch.service.store import backup as backups
from featurewatch.service.store.backup import BackupError
from tests import factories
from tests.cli.live import within
from tests.services import Postgres


@pytest.fixture
def environment(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Settings of an installation, for a command and for this process."""
    settings = {"FEATUREWATCH_DATA_DIR": str(tmp_path / "data"), "FEATUREWATCH_DATABASE_URL": database_url}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return settings


@pytest.fixture
def filled(database: Database) -> Database:
    with database.write() as session:
        family = factories.family(session)
        factories.checkpoint(session, family, "v1")
    return database


def answer(environment: dict[str, str], *arguments: str) -> Any:
    done = within("db", *arguments, "--json", env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_check_says_what_is_there(environment: dict[str, str], filled: Database, engine_kind: str) -> None:
    found = answer(environment, "check")
    assert found["schema"] == migrate.newest()
    assert found["engine"].startswith("SQLite 3" if engine_kind == "sqlite" else "PostgreSQL 1")
    assert (found["rows"]["family"], found["rows"]["checkpoint"], found["rows"]["verdict"]) == (1, 1, 0)
    assert found["bytes"] > 10_000
    done = within("db", "check", env=environment)
    assert done.returncode == 0 and "unreferenced  0 artifacts, 0 B" in done.stdout


def test_check_refuses_another_schema(environment: dict[str, str], filled: Database, database_url: str) -> None:
    filled.close()
    migrate.downgrade_url(database_url, "0006")
    done = within("db", "check", env=environment)
    assert done.returncode == 2 and "which this version requires" in done.stderr
    assert within("db", "upgrade", env=environment).returncode == 0
    assert within("db", "check", env=environment).returncode == 0


def test_check_finds_rows_without_parents(environment: dict[str, str], database: Database) -> None:
    if not database.is_sqlite:
        with database.read() as session:
            assert session.scalars(select(Family)).all() == []  # Postgres never lets such a row in
        return
    with closing(sqlite3.connect(str(database.url.database))) as connection:  # a plain one: keys are off
        connection.execute("INSERT INTO bell (run_id, created_at) VALUES ('run_none', '2026-01-01 00:00:00')")
        connection.commit()
    done = within("db", "check", "--json", env=environment)
    assert done.returncode == 1 and json.loads(done.stdout)["orphans"] == ["bell"]


def test_an_embedded_installation_moves_to_postgres(
    tmp_path: Path, sqlite_template: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "old.db"
    file.write_bytes(sqlite_template.read_bytes())
    with closing(Database(f"sqlite:///{file}")) as old, old.write() as session:
        family = factories.family(session)
        factories.checkpoint(session, family, "v1")
    name = postgres.create()  # not even a schema
    environment = {"FEATUREWATCH_DATABASE_URL": postgres.database_url(name)}
    try:
        copied = {row["table"]: row["rows"] for row in answer(environment, "copy", str(file))}
        assert (copied["family"], copied["checkpoint"], copied["verdict"]) == (1, 1, 0)
        assert answer(environment, "check")["rows"]["checkpoint"] == 1
        again = within("db", "copy", str(file), env=environment)
        assert again.returncode == 2 and "is not empty (it has rows in family, checkpoint)" in again.stderr
        missing = within("db", "copy", str(tmp_path / "none.db"), env=environment)
        assert missing.returncode == 2 and "no database at" in missing.stderr
        itself = within("db", "copy", postgres.database_url(name), env=environment)
        assert itself.returncode == 2 and "source and target are the same database" in itself.stderr
        migrate.downgrade_url(f"sqlite:///{file}", "0006")
        old_schema = within("db", "copy", str(file), env=environment)
        assert old_schema.returncode == 2 and "which this version requires" in old_schema.stderr
    finally:
        postgres.drop(name)


def test_vacuum_says_what_it_would_do_and_does_it(
    environment: dict[str, str], filled: Database, tmp_path: Path
) -> None:
    store = ArtifactStore(f"file://{tmp_path}/data/artifacts", tmp_path)
    with filled.write() as session:
        family = session.scalars(select(Family)).one()
        names = [f"{family.id}/measures-{number:020}" for number in range(30)]
        session.add_all(Unreferenced(artifact=name, since=utcnow().replace(year=2020)) for name in names)
    for name in names:
        with store.create(name) as place:
            place.write_text("12345")
    env = environment | {"FEATUREWATCH_VACUUM_HOURS": "0.0000001"}
    said = answer(env, "vacuum", "--dry-run")
    assert said["removed"] == dict.fromkeys(names, 5) and len(store.listing(family.id)) == 30
    assert answer(env | {"FEATUREWATCH_VACUUM_HOURS": "0"}, "vacuum")["waiting"] == said["removed"], "0: forever"
    assert answer(env, "vacuum")["removed"] == said["removed"]
    assert store.listing(family.id) == {}
    assert "Nothing to remove." in within("db", "vacuum", env=env).stderr


def test_vacuum_gives_the_space_of_a_sqlite_file_back(
    environment: dict[str, str], filled: Database, engine_kind: str
) -> None:
    with filled.write() as session:
        session.add_all(
            AuditEntry(actor="a" * 1000, method="POST", path="/", status=1, request_id="r") for _ in range(2000)
        )
    with filled.write() as session:
        session.query(AuditEntry).delete()
    found = answer(environment, "vacuum")
    if engine_kind == "sqlite":
        assert found["bytes"] < found["bytes_before"] - 1_500_000
        assert Path(str(filled.url.database)).stat().st_size == found["bytes"]


def test_a_backup_while_others_write_is_of_one_moment(tmp_path: Path, sqlite_template: Path) -> None:
    """Each transaction writes two rows: the copy has both of each or neither, and is one whole file."""
    file = tmp_path / "featurewatch.db"
    file.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{file}")
    stop, written = threading.Event(), threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            with database.write() as session:
                session.add(Event(id=f"msg_{number}", type="x", family_id=None, data={"text": "x" * 5000}))
                session.flush()
                session.add(AuditEntry(actor="a", method="POST", path="/", status=1, request_id=f"msg_{number}"))
            number += 1
            if number == 20:
                written.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert written.wait(60)
    copies = [tmp_path / f"copy-{number}" for number in range(3)]
    for copy in copies:
        backups.backup(file, copy)
    stop.set()
    writer.join()
    database.close()
    counts = []
    for copy in copies:
        with closing(sqlite3.connect(copy)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            events = {row[0] for row in connection.execute("SELECT id FROM event")}
            entries = {row[0] for row in connection.execute("SELECT request_id FROM audit_entry")}
        assert events == entries
        counts.append(len(events))
        assert not Path(f"{copy}-wal").exists()
    assert counts[0] >= 20 and counts == sorted(counts)


def test_backup_and_restore(environment: dict[str, str], filled: Database, tmp_path: Path) -> None:
    copy = tmp_path / "backup"
    if not filled.is_sqlite:
        for words, tool in ((["backup", str(copy)], "pg_dump"), (["restore", str(copy)], "pg_restore")):
            done = within("db", *words, env=environment)
            assert done.returncode == 2 and f"use {tool}, see docs/operations.md" in done.stderr
        return
    assert answer(environment, "backup", str(copy)) == {"file": str(copy), "bytes": copy.stat().st_size}
    again = within("db", "backup", str(copy), env=environment)
    assert again.returncode == 2 and "already exists" in again.stderr
    with filled.write() as session:
        factories.family(session, "later")
    refused = within("db", "restore", str(copy), env=environment)
    assert refused.returncode == 2 and "contains data; --replace deletes it" in refused.stderr
    done = within("db", "restore", str(copy), "--replace", env=environment)
    assert done.returncode == 0, done.stderr
    with filled.read() as session:  # over connections that were open all the time
        assert [family.name for family in session.scalars(select(Family))] == ["smol"]


def test_a_backup_of_an_older_version_is_upgraded(
    environment: dict[str, str], filled: Database, tmp_path: Path
) -> None:
    if not filled.is_sqlite:
        return
    copy = tmp_path / "backup"
    local_database.backup(copy)
    migrate.downgrade_url(f"sqlite:///{copy}", "0006")
    local_database.restore(copy, replace=True)
    assert local_database.check(deep=False)["rows"]["family"] == 1


def test_a_damaged_backup_is_refused(filled: Database, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database at all" * 100)
    with pytest.raises(BackupError, match="damaged"):
        backups.restore(tmp_path / "text", tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()
    with pytest.raises(BackupError, match="does not exist"):
        backups.restore(tmp_path / "none", tmp_path / "new.db")
    with pytest.raises(base.UsageError):
        local_database.copy("nowhere.db")
