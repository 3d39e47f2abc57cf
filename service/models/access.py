"""API keys, browser sessions, the audit log, and stored responses of idempotent requests."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.db import Base
from featurewatch.service.kit.ids import new_id


class ApiKey(Base):
    __tablename__ = "api_key"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("key"))
    name: Mapped[str]
    prefix: Mapped[str] = mapped_column(unique=True)
    """The part that is used for lookup and shown in lists."""
    hash: Mapped[str]
    """SHA-256 of the whole key. It has 160 random bits, so a slow hash would add nothing."""
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class WebSession(Base):
    """A browser signed in to the pages with a key. Signing out deletes it."""

    __tablename__ = "web_session"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("ses"))
    key_id: Mapped[str] = mapped_column(ForeignKey("api_key.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    expires_at: Mapped[datetime] = mapped_column(index=True)


class AuditEntry(Base):
    """Who wrote what, when."""

    __tablename__ = "audit_entry"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("aud"))
    at: Mapped[datetime] = mapped_column(default=utcnow, index=True)
    actor: Mapped[str]
    method: Mapped[str]
    path: Mapped[str]
    status: Mapped[int]
    request_id: Mapped[str]


class IdempotencyRecord(Base):
    """The response to a POST or PATCH with an Idempotency-Key."""

    __tablename__ = "idempotency_record"

    key: Mapped[str] = mapped_column(primary_key=True)
    """Caller and header value, so that callers cannot collide."""
    fingerprint: Mapped[str]
    status: Mapped[int]
    headers: Mapped[dict[str, Any]]
    body: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=utcnow, index=True)
