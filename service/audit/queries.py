"""SQL of the audit log and of remembered answers."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from featurewatch.service.kit.pages import SortKey, keyset
from featurewatch.service.models import AuditEntry, IdempotencyRecord


def add_entry(session: Session, entry: AuditEntry) -> None:
    """Note one write."""
    session.add(entry)


def page_of_entries(
    session: Session, *, actor: str | None, after: Sequence[Any] | None, limit: int
) -> Sequence[AuditEntry]:
    """The audit log, of one actor or of all, newest first; a row more than `limit` where there are more."""
    statement = select(AuditEntry)
    if actor:
        statement = statement.where(AuditEntry.actor == actor)
    keys = [SortKey(AuditEntry.at, descending=True), SortKey(AuditEntry.id, descending=True)]
    return session.scalars(keyset(statement, keys, after, limit)).all()


def find_record(session: Session, key: str) -> IdempotencyRecord | None:
    """The remembered answer of a key."""
    return session.get(IdempotencyRecord, key)


def add_record(session: Session, record: IdempotencyRecord) -> None:
    """Take a key; IntegrityError where another request took it first."""
    session.add(record)
    session.flush()


def drop_entries_before(session: Session, moment: datetime) -> None:
    """Forget writes that were carried out before `moment`."""
    session.execute(delete(AuditEntry).where(AuditEntry.at < moment))


def drop_records_before(session: Session, moment: datetime) -> None:
    """Forget answers that are older than `moment`."""
    session.execute(delete(IdempotencyRecord).where(IdempotencyRecord.created_at < moment))
