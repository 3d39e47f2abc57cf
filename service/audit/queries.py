"""SQL of the audit log and of stored idempotent responses."""

from datetime import datetime

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session

from featurewatch.service.models import AuditEntry, IdempotencyRecord


def entries(actor: str | None) -> Select[AuditEntry]:
    """Select the audit log, optionally of one actor, in no order."""
    return select(AuditEntry).where(AuditEntry.actor == actor) if actor else select(AuditEntry)


def drop_entries_before(session: Session, moment: datetime) -> None:
    """Delete audit entries from before `moment`."""
    session.execute(delete(AuditEntry).where(AuditEntry.at < moment))


def drop_records_before(session: Session, moment: datetime) -> None:
    """Delete stored responses from before `moment`."""
    session.execute(delete(IdempotencyRecord).where(IdempotencyRecord.created_at < moment))
