"""Deleted families: hidden at once, removed in steps, and recorded so that leftovers can be detected."""

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.db import Base


class Deletion(Base):
    """The deletion of one family. It has no foreign key, because it outlives the family's row."""

    __tablename__ = "deletion"

    family_id: Mapped[str] = mapped_column(primary_key=True)
    requested_at: Mapped[datetime] = mapped_column(default=utcnow)
    finished_at: Mapped[datetime | None]
    """None while rows or artifacts of the family remain."""
