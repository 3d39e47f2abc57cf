"""Webhooks, events and deliveries."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.db import Base
from featurewatch.service.kit.ids import new_id


class Webhook(Base):
    __tablename__ = "webhook"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("whk"))
    url: Mapped[str]
    """Scheme and host, for display."""
    sealed_url: Mapped[bytes]
    """The full URL, encrypted with the installation's SECRET_KEY, because path or query often contain a token."""
    event_types: Mapped[list[str]]
    """Empty for all."""
    format: Mapped[str] = mapped_column(default="standard")
    """standard or slack."""
    secret: Mapped[bytes]
    """The whsec_ secret, encrypted with the installation's SECRET_KEY."""
    old_secret: Mapped[bytes | None]
    """The secret before the last rotation, which also signs until `old_secret_until`."""
    old_secret_until: Mapped[datetime | None]
    enabled: Mapped[bool] = mapped_column(default=True)
    disabled_reason: Mapped[str | None]
    failing_since: Mapped[datetime | None]
    """First failure since the last success; None if the last attempt succeeded."""
    paused_at: Mapped[datetime | None]
    """Set if it was disabled because it failed for days. Deliveries wait until it is enabled."""
    created_at: Mapped[datetime] = mapped_column(default=utcnow)


def url_context(webhook_id: str) -> str:
    """Encryption context of a webhook's URL, so that no other column can be decrypted in its place."""
    return f"{webhook_id} url"


class Event(Base):
    """Something that happened. Its id is the `webhook-id` of all its deliveries."""

    __tablename__ = "event"

    id: Mapped[str] = mapped_column(primary_key=True)
    """`msg_` and a digest of type and key, so that a repeated transaction stores it only once."""
    type: Mapped[str]
    family_id: Mapped[str | None] = mapped_column(ForeignKey("family.id"), index=True)
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utcnow, index=True)


class Delivery(Base):
    """The delivery of one event to one webhook."""

    __tablename__ = "delivery"
    __table_args__ = (
        UniqueConstraint("webhook_id", "event_id"),
        Index("ix_delivery_due", "state", "next_attempt_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("dlv"))
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhook.id", ondelete="CASCADE"), index=True)
    event_id: Mapped[str] = mapped_column(ForeignKey("event.id"), index=True)
    state: Mapped[str] = mapped_column(default="pending")
    """pending, delivered or failed (after the last attempt)."""
    attempts: Mapped[int] = mapped_column(default=0)
    next_attempt_at: Mapped[datetime | None] = mapped_column(default=utcnow)
    log: Mapped[list[Any]] = mapped_column(default=list)
    """Attempts, oldest first: `{at, status, error, seconds, response}`."""
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    delivered_at: Mapped[datetime | None]
