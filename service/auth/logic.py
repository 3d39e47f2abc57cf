"""API keys: making, checking and revoking them, and the sessions of browsers that signed in with one."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from featurewatch.service.auth import keys, queries
from featurewatch.service.auth.schemas import KeyOut
from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.pages import Page, Pager
from featurewatch.service.kit.problems import NotFoundError, UnauthenticatedError
from featurewatch.service.models import ApiKey, WebSession

SCOPES = ("read", "write", "admin")
_INCLUDED = {"read": {"read"}, "write": {"read", "write"}, "admin": {"read", "write", "admin"}}
SESSION_LENGTH = timedelta(days=7)
USE_NOTED_EVERY = timedelta(minutes=1)


@dataclass(frozen=True)
class Principal:
    """Who makes a request, and what they may do."""

    id: str
    scopes: frozenset[str]
    note_use: bool = False
    session_id: str | None = None
    """Of a browser that signed in; None: the request came with the key itself."""


ANONYMOUS = Principal("anonymous", frozenset(SCOPES))
"""Everybody, where no keys are required (the embedded service on a loopback address)."""


def create(
    session: Session, *, name: str, scopes: Sequence[str], expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """Store a new key. Returns its row and the key itself, which is not kept."""
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
    queries.add(session, row)
    return row, key


def authenticate(session: Session, key: str) -> Principal:
    """Who a key belongs to. Raises 401 for one that is malformed, unknown, expired or revoked."""
    row = queries.find_by_prefix(session, keys.lookup_prefix(key)) if keys.well_formed(key) else None
    # One message for all: nobody learns which prefixes exist.
    if row is None or not keys.matches(key, row.hash) or row.revoked_at is not None:
        raise UnauthenticatedError("This API key is not valid.", code="invalid-key")
    if not alive(row):
        raise UnauthenticatedError("This API key has expired.", code="expired-key")
    return _principal(row)


def sign_in(session: Session, principal: Principal) -> WebSession:
    """Begin a browser's session with the key that it gave."""
    row = WebSession(key_id=principal.id, expires_at=utcnow() + SESSION_LENGTH)
    queries.add_session(session, row)
    return row


def returning(session: Session, session_id: str) -> Principal | None:
    """Who signed in before; None where the session or its key has ended since."""
    row = queries.key_of_session(session, session_id, utcnow())
    return _principal(row, session_id) if row is not None and alive(row) else None


def still_valid(session: Session, principal: Principal) -> bool:
    """Whether the key of a caller, and a browser's session, have not ended since the request began."""
    if principal is ANONYMOUS:
        return True
    if principal.session_id is not None:
        return returning(session, principal.session_id) is not None
    row = queries.find(session, principal.id)
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
    found = queries.page_of_keys(session, after=paging.after("keys"), limit=paging.limit)
    rows, cursor = paging.page(found, "keys", lambda row: (row.created_at, row.id))
    return Page(data=[KeyOut.model_validate(row) for row in rows], next_cursor=cursor)


def get(session: Session, key_id: str) -> ApiKey:
    """The key with this id, or 404."""
    row = queries.find(session, key_id)
    if row is None:
        raise NotFoundError(f"There is no API key {key_id}.")
    return row


def revoke(session: Session, key_id: str) -> None:
    """End a key; one that has ended stays so."""
    row = get(session, key_id)
    row.revoked_at = row.revoked_at or utcnow()
