"""The ledger of the artifact store: the expected content of every artifact, and artifacts to be removed."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger
from sqlalchemy.orm import Mapped, mapped_column

from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.db import Base


class Artifact(Base):
    """Written when an artifact is created, and compared with its files when it is opened."""

    __tablename__ = "artifact"

    name: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    """Total bytes of its files."""
    digest: Mapped[str]
    """SHA-256 of a file, or over the names, sizes and digests of a folder's files."""
    files: Mapped[dict[str, Any]]
    """`{name: [size, sha256]}`. A single file has the empty name."""
    created_at: Mapped[datetime] = mapped_column(default=utcnow)


class Unreferenced(Base):
    """An artifact is removed only hours after it was first seen without a reference.

    A copy of the store that is started after a database backup therefore has everything that the backup refers to.
    """

    __tablename__ = "unreferenced"

    artifact: Mapped[str] = mapped_column(primary_key=True)
    since: Mapped[datetime]
