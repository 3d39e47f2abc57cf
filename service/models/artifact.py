"""Artifacts of the store: what each must hold."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger
from sqlalchemy.orm import Mapped, mapped_column

from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.db import Base


class Artifact(Base):
    """Written when an artifact is made, compared with what is there when it is opened."""

    __tablename__ = "artifact"

    name: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    """Bytes of all its files."""
    digest: Mapped[str]
    """Of a file its SHA-256, of a folder that over names, sizes and digests of its files."""
    files: Mapped[dict[str, Any]]
    """`{name: [size, sha256]}`; a file's only name is empty."""
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
