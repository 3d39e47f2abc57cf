"""SQL of API keys."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from service.kit.pages import SortKey, keyset
from service.models import ApiKey

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


def note_use(session: Session, key_id: str, moment: datetime) -> None:
    """Remember when a key was used last."""
    session.execute(update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=moment))
