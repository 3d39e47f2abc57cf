"""The lineage of features: what a re-fit made of the last generation's."""

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column

from featurewatch.service.kit.db import Base


class Lineage(Base):
    """One link between two generations. A feature that is split, or merged out of several, has several."""

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
    """The new one."""
    old: Mapped[int | None]
    """Number of a feature of the last generation; None: none led to `new`."""
    new: Mapped[int | None]
    """Number of a feature of this generation, the same as `old` where it was carried; None: `old` was retired."""
    kind: Mapped[str]
    """carried, retired, split (old ended, new is one of several that carry it), merged (new carries it and others) or
    new."""
    score: Mapped[float]
    """Correlation of the two codes on the probe corpus; of a retired or new one with what comes nearest."""
