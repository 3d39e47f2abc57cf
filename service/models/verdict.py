"""Verdicts (rows, for queries) and measurements (arrays, for comparing any two checkpoints)."""

from typing import Any

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column

from featurewatch.service.kit.db import Base


class Verdict(Base):
    """The status of one feature in one checkpoint against its parent."""

    __tablename__ = "verdict"
    __table_args__ = (
        ForeignKeyConstraint(["family_id", "feature"], ["feature.family_id", "feature.number"]),
        Index("ix_verdict_course", "family_id", "feature"),
    )

    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoint.id"), primary_key=True)
    feature: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    family_id: Mapped[str]
    status: Mapped[str]
    previous_status: Mapped[str | None]
    """Status at the parent; None at the first checkpoint of a lineage or of a feature."""
    change: Mapped[float]
    """Size of the change, 0 if not significant. Lists are sorted by it, largest first."""
    places: Mapped[str | None]
    """None where they were not compared: gone or new features, and verdicts of versions before 0019."""
    projection_ratio: Mapped[float | None]
    projection_ratio_lo: Mapped[float | None]
    projection_ratio_hi: Mapped[float | None]
    strength_ratio: Mapped[float | None]
    strength_ratio_lo: Mapped[float | None]
    strength_ratio_hi: Mapped[float | None]
    orthogonal_ratio: Mapped[float | None]
    q_value: Mapped[float | None]
    strength: Mapped[float | None]
    direction_cosine: Mapped[float | None]
    readability: Mapped[float | None]
    firing_rate: Mapped[float]
    firings: Mapped[int]
    minimum_detectable_ratio: Mapped[float | None]
    """The largest projection ratio below 1 that the data could have distinguished from 1; None if none."""
    places_q_value: Mapped[float | None]
    firing_rate_before: Mapped[float | None]
    firing_rate_ratio: Mapped[float | None]
    firing_rate_ratio_lo: Mapped[float | None]
    firing_rate_ratio_hi: Mapped[float | None]
    gained_share: Mapped[float | None]
    gained_share_lo: Mapped[float | None]
    gained_share_hi: Mapped[float | None]
    lost_share: Mapped[float | None]
    lost_share_lo: Mapped[float | None]
    lost_share_hi: Mapped[float | None]
    kept_amplitude: Mapped[float | None]
    kept_amplitude_lo: Mapped[float | None]
    kept_amplitude_hi: Mapped[float | None]
    gained_documents: Mapped[float | None]
    successors: Mapped[list[Any]]
    """`[{"id": "F7", "kind": "replaced" | "split" | "merged", "cofiring": 0.83}]`"""


# In the order of lists, including ties. Most features have not changed, and every request would sort them again.
Index("ix_verdict_changes", Verdict.checkpoint_id, Verdict.status, Verdict.change.desc(), Verdict.feature)
Index("ix_verdict_order", Verdict.checkpoint_id, Verdict.change.desc(), Verdict.feature)


class Measurement(Base):
    """One metric of all features at one source: a float32 array whose last dimension is the feature's number.

    Its length covers the checkpoint's code, and features discovered later that the checkpoint already had. It is NaN
    where the checkpoint does not have the feature (retired, or on another branch), so that any two checkpoints can be
    compared even if ids changed between them.
    """

    __tablename__ = "measurement"

    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoint.id"), primary_key=True)
    hook_point: Mapped[str] = mapped_column(primary_key=True)
    """`*` for a metric over all hook points."""
    metric: Mapped[str] = mapped_column(primary_key=True)
    shape: Mapped[list[Any]]
    data: Mapped[bytes]
    """Little-endian float32, row-major."""


class Standing(Base):
    """A second copy of a checkpoint's verdicts, as columns: reading the rows takes a hundred times as long.

    Code that writes verdicts deletes it in the same transaction and may recreate it. Without it, the rows are read.
    """

    __tablename__ = "standing"

    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoint.id"), primary_key=True)
    layout: Mapped[str]
    """`service.verdicts.stored.LAYOUT` of the code that wrote it. Another layout is ignored: the rows are read."""
    data: Mapped[bytes]
    """Records of `service.verdicts.stored.RECORD`, in the order of features."""
