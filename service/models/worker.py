"""Workers that run, whether they have work or not."""

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from featurewatch.service.kit.db import Base


class Worker(Base):
    """A process that takes runs. It says every few seconds that it is there; one that was killed says nothing more."""

    __tablename__ = "worker"

    name: Mapped[str] = mapped_column(primary_key=True)
    """Host, process and a random part."""
    stuck: Mapped[bool] = mapped_column(default=False)
    """Its run gives no sign of life, or does not stop as it should; it will be killed for it."""
    seen_at: Mapped[datetime]
    """By the database's clock."""
