"""Shards: groups of documents of a harvest that several workers share, with their leases."""

from datetime import datetime

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from featurewatch.service.kit.db import Base
from featurewatch.service.kit.ids import new_id


class Shard(Base):
    __tablename__ = "shard"
    __table_args__ = (UniqueConstraint("run_id", "number"),)

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("shd"))
    """New in each attempt of the run, so that claims of earlier attempts match nothing."""
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"))
    run_attempt: Mapped[int]
    number: Mapped[int]
    folder: Mapped[str]
    """Artifact with the harvest's settings and what helpers have read. Its name contains a digest of the settings."""
    size: Mapped[int]
    """Number of positions."""
    read: Mapped[int] = mapped_column(default=0)
    """Positions read so far."""
    attempt: Mapped[int] = mapped_column(default=0)
    """Fencing number, as for runs."""
    worker: Mapped[str | None]
    """The worker that reads it or has read it."""
    lease_until: Mapped[datetime | None]
    """None for the run's own worker, which has the run's lease."""
    done_at: Mapped[datetime | None]
