"""Running workers, busy or idle."""

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from featurewatch.service.kit.db import Base


class Worker(Base):
    """A worker process, which updates `seen_at` every few seconds while it is alive."""

    __tablename__ = "worker"

    name: Mapped[str] = mapped_column(primary_key=True)
    """Host name, process id and a random part."""
    stuck: Mapped[bool] = mapped_column(default=False)
    """Its run shows no progress or does not stop when asked, and will be killed."""
    seen_at: Mapped[datetime]
    """By the database's clock."""
