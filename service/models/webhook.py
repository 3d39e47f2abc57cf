"""Webhooks: where to send, what happened, and each attempt to deliver it."""

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
    """As it is shown: scheme and host."""
    sealed_url: Mapped[bytes]
    """The whole URL, encrypted with the installation's SECRET_KEY: its path and query are often a token."""
    event_types: Mapped[list[str]]
    """Empty: all."""
    format: Mapped[str] = mapped_column(default="standard")
    """standard or slack."""
    secret: Mapped[bytes]
    """The whsec_ secret, encrypted with the installation's SECRET_KEY."""
    old_secret: Mapped[bytes | None]
    """The one before the last rotation; it signs too until `old_secret_until`."""
    old_secret_until: Mapped[datetime | None]
    enabled: Mapped[bool] = mapped_column(default=True)
    disabled_reason: Mapped[str | None]
    failing_since: Mapped[datetime | None]
    """The first failure after the last success; None: the last attempt was one."""
    paused_at: Mapped[datetime | None]
    """Set where it is not enabled because it failed for days: deliveries wait until somebody enables it."""
    created_at: Mapped[datetime] = mapped_column(default=utcnow)


def url_context(webhook_id: str) -> str:
    """What a webhook's URL is encrypted for: nothing else of the row opens in its place."""
    return f"{webhook_id} url"


class Event(Base):
    """Something that happened. Its id is the `webhook-id` of every delivery of it."""

    __tablename__ = "event"

    id: Mapped[str] = mapped_column(primary_key=True)
    """`msg_` and a digest of what it is about, so that a repeated transaction makes no second event."""
    type: Mapped[str]
    family_id: Mapped[str | None] = mapped_column(ForeignKey("family.id"), index=True)
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utcnow, index=True)


class Delivery(Base):
    """One event on its way to one webhook."""

    __tablename__ = "delivery"
    __table_args__ = (
        UniqueConstraint("webhook_id", "event_id"),
        Index("ix_delivery_due", "state", "next_attempt_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("dlv"))
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhook.id", ondelete="CASCADE"), index=True)
    event_id: Mapped[str] = mapped_column(ForeignKey("event.id"), index=True)
    state: Mapped[str] = mapped_column(default="pending")
    """pending, delivered or failed (given up)."""
    attempts: Mapped[int] = mapped_column(default=0)
    next_attempt_at: Mapped[datetime | None] = mapped_column(default=utcnow)
    log: Mapped[list[Any]] = mapped_column(default=list)
    """Attempts, oldest first: `{at, status, error, seconds, response}`."""
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    delivered_at: Mapped[datetime | None]
