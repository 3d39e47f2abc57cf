"""Artifacts that nothing refers to any more, and since when that was seen."""

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from featurewatch.service.kit.db import Base


class Unreferenced(Base):
    """An artifact is removed some hours after it was first seen without a reference, and not before.

    So a copy of the store that is begun after a backup of the database has all that the backup refers to.
    """

    __tablename__ = "unreferenced"

    artifact: Mapped[str] = mapped_column(primary_key=True)
    since: Mapped[datetime]
