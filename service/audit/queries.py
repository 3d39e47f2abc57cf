"""SQL of the audit log and of stored idempotent responses."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from featurewatch.service.kit.pages import SortKey, keyset
from featurewatch.service.models import AuditEntry, IdempotencyRecord


def page_of_entries(
    session: Session, *, actor: str | None, after: Sequence[Any] | None, limit: int
) -> Sequence[AuditEntry]:
    """The audit log, optionally of one actor, newest first; one row more than `limit` if there are more."""
    statement = select(AuditEntry)
    if actor:
        statement = statement.where(AuditEntry.actor == actor)
    keys = [SortKey(AuditEntry.at, descending=True), SortKey(AuditEntry.id, descending=True)]
    return session.scalars(keyset(statement, keys, after, limit)).all()


def drop_entries_before(session: Session, moment: datetime) -> None:
    """Delete audit entries from before `moment`."""
    session.execute(delete(AuditEntry).where(AuditEntry.at < moment))


def drop_records_before(session: Session, moment: datetime) -> None:
    """Delete stored responses from before `moment`."""
    session.execute(delete(IdempotencyRecord).where(IdempotencyRecord.created_at < moment))
