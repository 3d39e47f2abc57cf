"""SQL of API keys and browser sessions."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.orm import Session

from featurewatch.service.models import ApiKey, WebSession

_BY_PREFIX = select(*ApiKey.__table__.c).where(ApiKey.prefix == bindparam("prefix"))
"""Built once, and selects plain columns: every request runs it."""


def find_by_prefix(session: Session, prefix: str) -> Any:
    """The key with this prefix, as a plain row with the attributes of an `ApiKey`, or None."""
    return session.execute(_BY_PREFIX, {"prefix": prefix}).one_or_none()


def newest_keys(session: Session, limit: int) -> Sequence[ApiKey]:
    """Up to `limit` keys, including revoked ones, newest first."""
    return session.scalars(select(ApiKey).order_by(ApiKey.created_at.desc(), ApiKey.id.desc()).limit(limit)).all()


def key_of_session(session: Session, session_id: str, now: datetime) -> ApiKey | None:
    """The key of an unexpired browser session, which may itself be revoked or expired."""
    return session.scalars(
        select(ApiKey)
        .join(WebSession, WebSession.key_id == ApiKey.id)
        .where(WebSession.id == session_id, WebSession.expires_at > now)
    ).one_or_none()


def end_session(session: Session, session_id: str) -> None:
    """Delete a browser session, if it exists."""
    session.execute(delete(WebSession).where(WebSession.id == session_id))


def drop_sessions_before(session: Session, moment: datetime) -> None:
    """Delete sessions that expired before `moment`."""
    session.execute(delete(WebSession).where(WebSession.expires_at < moment))


def note_use(session: Session, key_id: str, moment: datetime) -> None:
    """Record when a key was last used."""
    session.execute(update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=moment))
