"""Families: models that are tracked together in one feature space. Deleted families."""

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Mapped, mapped_column

from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.db import Base
from featurewatch.service.kit.ids import new_id


class Family(Base):
    __tablename__ = "family"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("fam"))
    name: Mapped[str] = mapped_column(unique=True)
    hook_points: Mapped[list[str]]
    corpus: Mapped[dict[str, Any]]
    """`{uri, max_documents, context_length}`, as registered."""
    documents: Mapped[dict[str, Any] | None]
    """The copy of the corpus made by the first run, `{artifact, digest, count}`. Every checkpoint is run on it."""
    crosscoder: Mapped[dict[str, Any]]
    """`{n_features, k, sparsity, decoder, steps, batch_size, learning_rate, seed}`, defaults filled in."""
    policy: Mapped[dict[str, Any]]
    """Thresholds of the verdicts and of re-fits, defaults filled in."""
    generation: Mapped[int] = mapped_column(default=0)
    """Number of full fits so far."""
    n_features: Mapped[int] = mapped_column(default=0)
    """Number of feature ids assigned so far, and the number of the next one."""
    positions: Mapped[dict[str, Any] | None]
    """Digest, count and artifact of the family's positions, set by its first checkpoint."""
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    updated_at: Mapped[datetime] = mapped_column(default=utcnow, onupdate=utcnow)


class Deletion(Base):
    """The deletion of one family. It has no foreign key, because it outlives the family's row."""

    __tablename__ = "deletion"

    family_id: Mapped[str] = mapped_column(primary_key=True)
    requested_at: Mapped[datetime] = mapped_column(default=utcnow)
    finished_at: Mapped[datetime | None]
    """None while rows or artifacts of the family remain."""
