"""SQL of API keys, and of the sessions that browsers began with them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.orm import Session

from featurewatch.service.kit.pages import SortKey, keyset
from featurewatch.service.models import ApiKey, WebSession

_BY_PREFIX = select(*ApiKey.__table__.c).where(ApiKey.prefix == bindparam("prefix"))
"""Built once: every request asks it, and only looks at the row."""


def find_by_prefix(session: Session, prefix: str) -> Any:
    """The key with this prefix, a plain row with the attributes of an `ApiKey`, or None."""
    return session.execute(_BY_PREFIX, {"prefix": prefix}).one_or_none()


def find(session: Session, key_id: str) -> ApiKey | None:
    """The key with this id."""
    return session.get(ApiKey, key_id)


def page_of_keys(session: Session, *, after: Sequence[Any] | None, limit: int) -> Sequence[ApiKey]:
    """Keys, revoked ones too, newest first; a row more than `limit` where there are more."""
    keys = [SortKey(ApiKey.created_at, descending=True), SortKey(ApiKey.id, descending=True)]
    return session.scalars(keyset(select(ApiKey), keys, after, limit)).all()


def add(session: Session, key: ApiKey) -> None:
    """Store a key; it has its id and its time afterwards."""
    session.add(key)
    session.flush()


def key_of_session(session: Session, session_id: str, now: datetime) -> ApiKey | None:
    """The key that a browser signed in with, which may have ended since; None where the session has."""
    return session.scalars(
        select(ApiKey)
        .join(WebSession, WebSession.key_id == ApiKey.id)
        .where(WebSession.id == session_id, WebSession.expires_at > now)
    ).one_or_none()


def add_session(session: Session, row: WebSession) -> None:
    """Store a browser's session; it has its id afterwards."""
    session.add(row)
    session.flush()


def end_session(session: Session, session_id: str) -> None:
    """Remove a browser's session; one that is not there is no error."""
    session.execute(delete(WebSession).where(WebSession.id == session_id))


def drop_sessions_before(session: Session, moment: datetime) -> None:
    """Forget sessions that expired before `moment`."""
    session.execute(delete(WebSession).where(WebSession.expires_at < moment))


def note_use(session: Session, key_id: str, moment: datetime) -> None:
    """Remember when a key was used last."""
    session.execute(update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=moment))
