"""Time: always UTC, always aware, from one place so that tests can move it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


def utcnow() -> datetime:
    """Now, in UTC, by the clock of this process. For what people read, and for what only this process compares."""
    return datetime.now(UTC)


def database_now(session: Session) -> datetime:
    """Now, in UTC, by the database's clock. For every time that another machine compares with its own: leases, turns.

    Postgres: `clock_timestamp()`. Its `now()` is when the transaction began, which may have waited for a lock since:
    a lease that is counted from there would be too short. SQLite is a file on this machine, and has its clock.
    """
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    from sqlalchemy import func, select  # noqa: PLC0415 - the client asks for the time, too, and starts without it

    now: datetime = session.scalars(select(func.clock_timestamp())).one()
    return now.astimezone(UTC)
