"""Alert rules and the alerts that they raised."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.db import Base
from featurewatch.service.kit.ids import new_id

UNRESOLVED = text("state != 'resolved'")
"""Condition of the partial index of unresolved alerts."""


class AlertRule(Base):
    __tablename__ = "alert_rule"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("rul"))
    name: Mapped[str]
    family_id: Mapped[str | None] = mapped_column(ForeignKey("family.id"), index=True)
    """None: every family."""
    condition: Mapped[dict[str, Any]]
    """`{"kind": "watched", ...}`, see service.alerts.conditions."""
    enabled: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime] = mapped_column(default=utcnow)


class Alert(Base):
    """A problem with a checkpoint, a family or a webhook, open until it is resolved."""

    __tablename__ = "alert"
    __table_args__ = (
        # At most one unresolved alert per key, even if several sweeps run at the same time.
        Index("uq_alert_unresolved", "key", unique=True, sqlite_where=UNRESOLVED, postgresql_where=UNRESOLVED),
        Index("ix_alert_key", "key", "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("alt"))
    kind: Mapped[str]
    """The kind of its rule. `webhook_paused` has no rule."""
    key: Mapped[str]
    """Identifies the problem, such as `watched:{rule}:{checkpoint}`. A key may have many resolved alerts."""
    rule_id: Mapped[str | None] = mapped_column(ForeignKey("alert_rule.id", ondelete="CASCADE"), index=True)
    family_id: Mapped[str | None] = mapped_column(ForeignKey("family.id"), index=True)
    checkpoint_id: Mapped[str | None] = mapped_column(ForeignKey("checkpoint.id"), index=True)
    webhook_id: Mapped[str | None] = mapped_column(ForeignKey("webhook.id", ondelete="CASCADE"), index=True)
    state: Mapped[str] = mapped_column(default="open")
    """open, acknowledged, muted or resolved."""
    summary: Mapped[str]
    evidence: Mapped[list[Any]]
    """See service.alerts.evidence."""
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    updated_at: Mapped[datetime] = mapped_column(default=utcnow, onupdate=utcnow)
    muted_until: Mapped[datetime | None]
