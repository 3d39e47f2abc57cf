"""A group of documents of a harvest that several workers share: who reads it, and until when."""

from datetime import datetime

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from featurewatch.service.kit.db import Base
from featurewatch.service.kit.ids import new_id


class Shard(Base):
    __tablename__ = "shard"
    __table_args__ = (UniqueConstraint("run_id", "number"),)

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("shd"))
    """New with each attempt of the run: what was claimed in an earlier one matches nothing any more."""
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"))
    run_attempt: Mapped[int]
    number: Mapped[int]
    folder: Mapped[str]
    """Artifact that holds the harvest's terms and what helpers have read; its name has a digest of the terms."""
    size: Mapped[int]
    """Positions."""
    read: Mapped[int] = mapped_column(default=0)
    """Positions read so far."""
    attempt: Mapped[int] = mapped_column(default=0)
    """The fence, as that of a run."""
    worker: Mapped[str | None]
    """Who reads it, or has read it."""
    lease_until: Mapped[datetime | None]
    """None with a worker: it is the run's own, which has the run's lease."""
    done_at: Mapped[datetime | None]
