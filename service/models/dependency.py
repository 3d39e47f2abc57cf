"""Dependency graphs: what a feature is computed from in a checkpoint, and its effect there."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column

from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.db import ARTIFACT, Base


class DependencyGraph(Base):
    """The edges into one feature in one checkpoint, by one method."""

    __tablename__ = "dependency_graph"
    __table_args__ = (
        ForeignKeyConstraint(["family_id", "feature"], ["feature.family_id", "feature.number"]),
        Index("ix_dependency_graph_feature", "family_id", "feature"),
    )

    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoint.id"), primary_key=True)
    feature: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    method: Mapped[str] = mapped_column(primary_key=True)
    """relp, gradient or integrated."""
    family_id: Mapped[str]
    hook_point: Mapped[str]
    """Where the feature is read."""
    n_positions: Mapped[int]
    artifact: Mapped[str] = mapped_column(info=ARTIFACT)
    """safetensors with the sums by fold: `counts` [K], `values` [K], and for each earlier hook point H `numbers.H` [E],
    `sums.H` [K, E] and `rest.H` [K, 3] (bias, error, tokens without a code)."""
    graph: Mapped[dict[str, Any]]
    """See service.dependencies.schemas.Graph."""
    effect: Mapped[dict[str, Any] | None]
    """Effect of the feature's direction on the next token. None if the model has no head."""
    rewired: Mapped[bool | None]
    """Compared with the parent; None if unknown."""
    run_id: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
