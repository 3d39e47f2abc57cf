"""Artifacts that nothing refers to any more, and since when."""

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from featurewatch.service.kit.db import Base


class Unreferenced(Base):
    """An artifact is removed only hours after it was first seen without a reference.

    A copy of the store that is started after a database backup therefore has everything that the backup refers to.
    """

    __tablename__ = "unreferenced"

    artifact: Mapped[str] = mapped_column(primary_key=True)
    since: Mapped[datetime]
