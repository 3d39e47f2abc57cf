"""Families that were deleted: hidden at once, removed in steps, and remembered as proof that nothing is left."""

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.db import Base


class Deletion(Base):
    """The deletion of one family. It has no foreign key, since it outlives the family's row."""

    __tablename__ = "deletion"

    family_id: Mapped[str] = mapped_column(primary_key=True)
    requested_at: Mapped[datetime] = mapped_column(default=utcnow)
    finished_at: Mapped[datetime | None]
    """None: rows or artifacts of the family are still to be removed."""
