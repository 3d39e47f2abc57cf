"""The lineage of features: links between the features of consecutive generations."""

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column

from featurewatch.service.kit.db import Base


class Lineage(Base):
    """One link between two generations. A split or merged feature has several."""

    __tablename__ = "lineage"
    __table_args__ = (
        ForeignKeyConstraint(["family_id", "old"], ["feature.family_id", "feature.number"]),
        ForeignKeyConstraint(["family_id", "new"], ["feature.family_id", "feature.number"]),
        Index("ix_lineage_generation", "family_id", "generation", "kind"),
        Index("ix_lineage_old", "family_id", "old"),
        Index("ix_lineage_new", "family_id", "new"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    family_id: Mapped[str] = mapped_column(ForeignKey("family.id"))
    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoint.id"), index=True)
    """The checkpoint whose run fitted the generation."""
    generation: Mapped[int]
    """The new generation."""
    old: Mapped[int | None]
    """Feature number in the old generation; None if `new` has no predecessor."""
    new: Mapped[int | None]
    """Feature number in the new generation, the same as `old` if carried; None if `old` was retired."""
    kind: Mapped[str]
    """carried, retired, split (`new` is one of several successors of `old`), merged (`new` succeeds `old` and others)
    or new."""
    score: Mapped[float]
    """Correlation of the two codes on the probe corpus; for retired and new features, with the most similar one."""
