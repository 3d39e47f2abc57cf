"""Alert rules and the alerts that they raised."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from service.kit.clock import utcnow
from service.kit.db import Base
from service.kit.ids import new_id


class AlertRule(Base):
    __tablename__ = "alert_rule"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("rul"))
    name: Mapped[str]
    family_id: Mapped[str | None] = mapped_column(ForeignKey("family.id"), index=True)
    """None: every family."""
    condition: Mapped[dict[str, Any]]
    """`{"kind": "watched" | "tag" | "feature" | "status_count", ...}`, see service.alerts.schemas."""
    enabled: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime] = mapped_column(default=utcnow)


class Alert(Base):
    __tablename__ = "alert"
    __table_args__ = (UniqueConstraint("rule_id", "checkpoint_id"),)

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("alt"))
    rule_id: Mapped[str] = mapped_column(ForeignKey("alert_rule.id", ondelete="CASCADE"))
    family_id: Mapped[str] = mapped_column(ForeignKey("family.id"), index=True)
    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoint.id"), index=True)
    state: Mapped[str] = mapped_column(default="open")
    """open, acknowledged, muted or resolved."""
    summary: Mapped[str]
    evidence: Mapped[list[Any]]
    """The verdicts that raised it, largest change first."""
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    updated_at: Mapped[datetime] = mapped_column(default=utcnow, onupdate=utcnow)
    muted_until: Mapped[datetime | None]
