"""A whole database copied to the other engine and back: every row as it was, or nothing."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import null, select, text
from sqlalchemy.types import JSON

from featurewatch.service.kit.db import Database
from featurewatch.service.models import AuditEntry, Base, Bell, Event, Lineage, Run, Shard
from featurewatch.service.runs import logic as runs
from featurewatch.service.store import copying
from featurewatch.service.store.copying import CopyError, copy
from tests import factories
from tests.services import Postgres

# SQLAlchemy only warns where a transaction has begun and its isolation comes too late: then a copy from Postgres would
# not be one moment's.
pytestmark = pytest.mark.filterwarnings("error::sqlalchemy.exc.SAWarning")


@pytest.fixture
def other(
    engine_kind: str, tmp_path: Path, sqlite_template: Path, postgres: Postgres, postgres_template: str
) -> Iterator[Database]:
    """A fresh, migrated database of the other kind."""
    if engine_kind == "postgres":
        path = tmp_path / "other.db"
        shutil.copyfile(sqlite_template, path)
        database = Database(f"sqlite:///{path}")
        yield database
        database.close()
        return
    name = postgres.create(template=postgres_template)
    database = Database(postgres.database_url(name))
    yield database
    database.close()
    postgres.drop(name)


@pytest.fixture
def filled(database: Database) -> Database:
    """A database with what is hard to copy."""
    with database.write() as session:
        family = factories.family(session, "Größe ☃")
        first = factories.checkpoint(session, family, "v1")
        # A parent whose id and time come after its child's: neither tells the order.
        child = factories.checkpoint(session, family, "v2", parent=first, id="ckp_000", details={"a": [1.5, None, "é"]})
        late = factories.checkpoint(session, family, "v3", id="ckp_zzz", created_at=datetime(2030, 1, 1, tzinfo=UTC))
        child.parent_id = late.id
        late.parent_id = first.id
        late.quality = None  # JSON's null
        features = [factories.feature(session, family, number, first, label=None) for number in range(5)]
        for feature in features:
            factories.verdict(session, child, feature, projection_ratio=0.1 + 0.2, q_value=5e-324)
        factories.measurement(session, child, "level", np.array([[1, np.nan], [-0.0, np.inf]], np.float32))
        session.add(
            Lineage(
                family_id=family.id, checkpoint_id=child.id, generation=2, old=1, new=None, kind="retired", score=0.5
            )
        )
        run = runs.create(session, family_id=family.id, checkpoint_id=child.id, kind="onboard", params={})
        run.result = null()  # SQL's NULL
        run.started_at = datetime(2026, 3, 29, 1, 30, 0, 123456, tzinfo=UTC)
        session.flush()
        factories.log(session, run, [("error", "failed ☃", {"exception": "a\n b", "loss": None, "nul": "\0"})])
        session.add(Event(id="msg_1", type="x", family_id=None, data={"text": "zero \u0000 and 𝄞"}))
    return database


def raw(database: Database) -> dict[str, list[tuple]]:
    """All rows, columns as text where that is how JSON is kept; sorted."""
    found = {}
    with database.read() as session:
        for table in Base.metadata.sorted_tables:
            nulls = [column.is_(None) for column in table.columns if isinstance(column.type, JSON)]
            rows = session.execute(select(*table.columns, *nulls))
            found[table.name] = sorted((tuple(row) for row in rows), key=repr)
    return found


def copied(source: Database, target: Database) -> dict[str, int]:
    with source.write() as reading, target.write() as session:
        return {part.table: part.rows for part in copy(reading, session)}


def test_there_and_back(filled: Database, other: Database, tmp_path: Path, sqlite_template: Path) -> None:
    before = raw(filled)
    counts = copied(filled, other)
    assert counts == {name: len(rows) for name, rows in before.items()}
    assert counts["checkpoint"] == 3 and counts["verdict"] == 5
    assert raw(other) == before
    # The second way round on the same pair of engines, where that is the way to SQLite.
    shutil.copyfile(sqlite_template, tmp_path / "back.db")
    back = Database(f"sqlite:///{tmp_path / 'back.db'}")
    copied(other, back)
    assert raw(back) == before
    back.close()


def test_an_empty_database_is_copied(database: Database, other: Database) -> None:
    assert set(copied(database, other).values()) == {0}
    assert not any(raw(other).values())


def test_null_stays_apart_from_null(filled: Database, other: Database) -> None:
    copied(filled, other)
    with other.read() as session:
        assert session.scalar(text("SELECT quality FROM checkpoint WHERE name = 'v3'")) in ("null", None)
        assert session.scalar(text("SELECT count(*) FROM checkpoint WHERE quality IS NULL")) == 0
        assert session.scalar(text("SELECT count(*) FROM run WHERE result IS NULL")) == 1


def test_new_numbers_follow_those_that_were_copied(filled: Database, other: Database) -> None:
    copied(filled, other)
    with other.write() as session:
        run_id = session.scalars(select(Run.id)).one()
        last = max(session.scalars(select(Bell.id)))
        session.add(bell := Bell(run_id=run_id))
        session.flush()
        assert bell.id == last + 1


def test_a_target_with_rows_is_refused(filled: Database, other: Database) -> None:
    with other.write() as session:
        session.add(AuditEntry(actor="a", method="POST", path="/", status=201, request_id="r"))
    with pytest.raises(CopyError, match=r"it has rows in audit_entry"):
        copied(filled, other)


def test_while_a_worker_has_a_run_nothing_is_copied(filled: Database, other: Database) -> None:
    with filled.write() as session:
        runs.claim(session, worker="w", lease_seconds=-1)  # also where its lease is over
    with pytest.raises(CopyError, match="A worker is processing a run"):
        copied(filled, other)


def test_while_a_helper_holds_a_shard_nothing_is_copied(filled: Database, other: Database) -> None:
    with filled.write() as session:
        run_id = session.scalars(select(Run.id)).one()
        until = datetime.now(UTC) + timedelta(hours=1)
        shard = Shard(
            run_id=run_id, run_attempt=1, number=0, folder="f", size=1, lease_until=until, worker="h", done_at=None
        )
        session.add(shard)
    with pytest.raises(CopyError, match="A worker is processing a run"):
        copied(filled, other)


def test_a_row_that_differs_undoes_everything(
    filled: Database, other: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the target's engine would change on the way is found, here a float that loses its last bit."""
    batches = copying._batches

    def rounded(table, connection):
        changed = table.name == "verdict" and connection.dialect.name == other.writer.dialect.name
        for batch in batches(table, connection):
            yield [row | {"projection_ratio": 0.3} for row in batch] if changed else batch

    monkeypatch.setattr(copying, "_batches", rounded)
    with pytest.raises(CopyError, match=r"verdict .* differs in projection_ratio\. It was rolled back"):
        copied(filled, other)
    assert not any(raw(other).values())


def test_nobody_writes_to_a_sqlite_source_meanwhile(tmp_path: Path, sqlite_template: Path) -> None:
    databases = []
    for name in ("from.db", "to.db"):
        shutil.copyfile(sqlite_template, tmp_path / name)
        databases.append(Database(f"sqlite:///{tmp_path / name}"))
    with databases[0].write() as reading, databases[1].write() as session:
        copy(reading, session)
        with (
            closing(sqlite3.connect(tmp_path / "from.db", timeout=0)) as writer,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            writer.execute("BEGIN IMMEDIATE")
    for database in databases:
        database.close()
