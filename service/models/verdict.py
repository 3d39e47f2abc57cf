"""Verdicts (rows, for questions) and measurements (arrays, for comparing any two checkpoints)."""

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
    """At the parent; None at the first checkpoint of a lineage or of a feature."""
    change: Mapped[float]
    """Size of the change, 0 where nothing significant happened: orders lists by what to look at first."""
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
    """The largest projection ratio that could still have been told from 1; None where nothing could."""
    successors: Mapped[list[Any]]
    """`[{"id": "F7", "kind": "replaced" | "split" | "merged", "cofiring": 0.83}]`"""


# In the order of lists, ties and all: most features have not changed, and would be sorted by every request.
Index("ix_verdict_changes", Verdict.checkpoint_id, Verdict.status, Verdict.change.desc(), Verdict.feature)
Index("ix_verdict_order", Verdict.checkpoint_id, Verdict.change.desc(), Verdict.feature)


class Measurement(Base):
    """One metric of all features at one source: a float32 array whose last dimension is the feature's number.

    It ends with the highest number of the checkpoint's code, or of a feature that was there and discovered later. It is
    NaN where the checkpoint has no such feature (retired, or of another branch), so that any two checkpoints can be
    compared whatever became of ids between them.
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
    """All verdicts of a checkpoint once more, as columns: many rows take a hundred times as long to read.

    Whoever writes verdicts removes it in the same transaction, and may make it anew. Without it, rows are read.
    """

    __tablename__ = "standing"

    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoint.id"), primary_key=True)
    layout: Mapped[str]
    """`service.verdicts.stored.LAYOUT` of the code that wrote it. Another layout is ignored: the rows are read."""
    data: Mapped[bytes]
    """Records of `service.verdicts.stored.RECORD`, in the order of features."""
