"""Signatures: named concepts defined by a contrast set, and their reading in each checkpoint."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.db import ARTIFACT, Base
from featurewatch.service.kit.ids import new_id


class Signature(Base):
    __tablename__ = "signature"
    __table_args__ = (UniqueConstraint("family_id", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("sig"))
    family_id: Mapped[str] = mapped_column(ForeignKey("family.id"))
    name: Mapped[str]
    description: Mapped[str]
    settings: Mapped[dict[str, Any]]
    """`{position, template, hook_points, features, seed}`, defaults filled in."""
    contrast: Mapped[str] = mapped_column(info=ARTIFACT)
    """Artifact: JSONL with one row `{text, answer, label, group}` per line."""
    n_rows: Mapped[int]
    n_positive: Mapped[int]
    baseline_id: Mapped[str] = mapped_column(ForeignKey("checkpoint.id"))
    chosen: Mapped[list[Any] | None]
    """Features chosen at the baseline, `[{feature, hook_point, weight, auroc, q_value}]`. None until it is read."""
    created_at: Mapped[datetime] = mapped_column(default=utcnow)


class Reading(Base):
    """One signature in one checkpoint."""

    __tablename__ = "reading"
    __table_args__ = (Index("ix_reading_checkpoint", "checkpoint_id"),)

    signature_id: Mapped[str] = mapped_column(ForeignKey("signature.id", ondelete="CASCADE"), primary_key=True)
    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoint.id"), primary_key=True)
    status: Mapped[str]
    previous_status: Mapped[str | None]
    """Status at the nearest ancestor with a reading; None if there is none."""
    figures: Mapped[dict[str, Any]]
    """See service.signatures.schemas.Figures."""
    carriers: Mapped[list[Any]]
    """Features that separate the classes in this checkpoint."""
    reason: Mapped[str | None]
    """Why the status is `indeterminate`."""
    activations: Mapped[str] = mapped_column(info=ARTIFACT)
    """Artifact: safetensors, hook point -> [rows, d_model]."""
    judged_at: Mapped[datetime] = mapped_column(default=utcnow)
