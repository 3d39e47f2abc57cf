"""Connections to a Postgres that was away, and sessions that only read."""

import time

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import OperationalError

from featurewatch.service.kit import db
from featurewatch.service.kit.db import Database
from featurewatch.service.models import Family
from tests import factories
from tests.services import end_connections


def read(database: Database) -> int:
    with database.read() as session:
        return session.execute(text("SELECT 1")).scalar_one()


def test_connections_that_were_not_used_for_a_while_are_tried_first(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database.is_sqlite:
        assert read(database) == 1  # a file does not go away
        return
    monkeypatch.setattr(db, "PING_AFTER_SECONDS", 0.05)
    assert read(database) == 1
    end_connections(database.url)
    time.sleep(0.1)
    assert read(database) == 1, "nobody saw the restart"


def test_of_connections_in_use_one_fails_and_no_other(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    if database.is_sqlite:
        return
    monkeypatch.setattr(db, "PING_AFTER_SECONDS", 3600.0)
    with database.read() as one, database.read() as other:
        assert [session.execute(text("SELECT 1")).scalar() for session in (one, other)] == [1, 1]
    end_connections(database.url)
    with pytest.raises(OperationalError):
        read(database)
    assert read(database) == read(database) == 1
    with database.write() as session:
        factories.family(session, "after")


def test_a_session_that_reads_refuses_to_write(database: Database) -> None:
    for write in (factories.family, lambda session: session.execute(update(Family).values(name="x"))):
        with database.read() as session, pytest.raises(RuntimeError, match="read-only"):
            write(session)
    with database.read() as session:
        assert session.scalars(select(Family)).all() == []


def test_a_session_that_reads_sees_what_was_committed_since_it_began(database: Database) -> None:
    """Postgres: statement by statement. SQLite: what was there at its first statement."""
    with database.read() as reading:
        assert reading.scalars(select(Family.name)).all() == []
        with database.write() as session:
            factories.family(session, "new")
            assert reading.scalars(select(Family.name)).all() == [], "not before the commit"
        assert reading.scalars(select(Family.name)).all() == ([] if database.is_sqlite else ["new"])
    with database.read() as reading:
        assert reading.scalars(select(Family.name)).all() == ["new"]
