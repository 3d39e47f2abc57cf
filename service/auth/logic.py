"""Creates, checks and revokes API keys, and the browser sessions that were started with them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from featurewatch.service.auth import keys, queries
from featurewatch.service.auth.schemas import KeyOut
from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.pages import Page, Pager, newest_first
from featurewatch.service.kit.problems import NotFoundError, UnauthenticatedError
from featurewatch.service.models import ApiKey, WebSession

SCOPES = ("read", "write", "admin")
_INCLUDED = {"read": {"read"}, "write": {"read", "write"}, "admin": {"read", "write", "admin"}}
SESSION_LENGTH = timedelta(days=7)
USE_NOTED_EVERY = timedelta(minutes=1)


@dataclass(frozen=True)
class Principal:
    """The caller of a request, and their scopes."""

    id: str
    scopes: frozenset[str]
    note_use: bool = False
    session_id: str | None = None
    """Session of a signed-in browser. None if the request came with the key itself."""


ANONYMOUS = Principal("anonymous", frozenset(SCOPES))
"""Every caller if no keys are required (the embedded service on a loopback address)."""


def create(
    session: Session, *, name: str, scopes: Sequence[str], expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """Create a key. Returns its row and the key itself, which is not stored."""
    key = keys.make_key()
    row = ApiKey(
        name=name,
        prefix=keys.lookup_prefix(key),
        hash=keys.hash_key(key),
        scopes=[scope for scope in SCOPES if scope in scopes],
        expires_at=expires_at,
        revoked_at=None,
        last_used_at=None,
    )
    session.add(row)
    session.flush()
    return row, key


def authenticate(session: Session, key: str) -> Principal:
    """The principal of a key. Raises 401 if it is malformed, unknown, expired or revoked."""
    row = queries.find_by_prefix(session, keys.lookup_prefix(key)) if keys.well_formed(key) else None
    # The same message in all cases, so that nobody learns which prefixes exist.
    if row is None or not keys.matches(key, row.hash) or row.revoked_at is not None:
        raise UnauthenticatedError("Invalid API key.", code="invalid-key")
    if not alive(row):
        raise UnauthenticatedError("This API key has expired.", code="expired-key")
    return _principal(row)


def sign_in(session: Session, principal: Principal) -> WebSession:
    """Start a browser session for a key."""
    row = WebSession(key_id=principal.id, expires_at=utcnow() + SESSION_LENGTH)
    session.add(row)
    session.flush()
    return row


def returning(session: Session, session_id: str) -> Principal | None:
    """The principal of a browser session; None if the session or its key has ended."""
    row = queries.key_of_session(session, session_id, utcnow())
    return _principal(row, session_id) if row is not None and alive(row) else None


def still_valid(session: Session, principal: Principal) -> bool:
    """Whether a caller's key and browser session are still valid, for long-running requests."""
    if principal is ANONYMOUS:
        return True
    if principal.session_id is not None:
        return returning(session, principal.session_id) is not None
    row = session.get(ApiKey, principal.id)
    return row is not None and alive(row)


def _principal(row: ApiKey, session_id: str | None = None) -> Principal:
    granted: set[str] = set().union(*(_INCLUDED.get(scope, set()) for scope in row.scopes))
    stale = row.last_used_at is None or utcnow() - row.last_used_at > USE_NOTED_EVERY
    return Principal(row.id, frozenset(granted), note_use=stale, session_id=session_id)


def alive(row: ApiKey) -> bool:
    """Whether a key is neither revoked nor expired."""
    return row.revoked_at is None and (row.expires_at is None or row.expires_at > utcnow())


def page(session: Session, paging: Pager) -> Page[KeyOut]:
    """A page of API keys, newest first."""
    return paging.fetch(session, select(ApiKey), newest_first(ApiKey), "keys", KeyOut.model_validate)


def get(session: Session, key_id: str) -> ApiKey:
    """The API key with this id, or 404."""
    row = session.get(ApiKey, key_id)
    if row is None:
        raise NotFoundError(f"There is no API key {key_id}.")
    return row


def revoke(session: Session, key_id: str) -> None:
    """Revoke a key. Revoking it again changes nothing."""
    row = get(session, key_id)
    row.revoked_at = row.revoked_at or utcnow()
