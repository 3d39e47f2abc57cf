"""Time: always UTC and timezone-aware, in one place so that tests can change it."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


def utcnow() -> datetime:
    """The current time on this machine's clock. For display, and for times that only this process compares."""
    return datetime.now(UTC)


def database_now(session: Session) -> datetime:
    """The current time on the database's clock. For times that several machines compare, such as leases.

    On Postgres this is `clock_timestamp()`. `now()` is when the transaction began; if it has waited for a lock since,
    a lease that starts there would be too short. SQLite is a file on this machine and shares its clock.
    """
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    from sqlalchemy import func, select  # noqa: PLC0415 - the client imports this module and must start without SQLAlchemy

    now: datetime = session.scalars(select(func.clock_timestamp())).one()
    return now.astimezone(UTC)


def seconds_of(retry_after: str | None, now: datetime) -> float | None:
    """Seconds of a Retry-After header: a number or a date (RFC 9110, section 10.2.3). None if it is neither."""
    try:
        return max(0.0, float(retry_after or ""))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(retry_after or "")
    except (ValueError, OverflowError):
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds())
