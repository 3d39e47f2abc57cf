"""Runs: units of work for the workers, with their attempts, logs and notifications. Running workers."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.db import Base
from featurewatch.service.kit.ids import new_id

_ACTIVE = text("state IN ('running', 'cancelling')")


class Run(Base):
    __tablename__ = "run"
    __table_args__ = (
        # One run at a time per family, enforced by the database.
        Index("uq_run_active_family", "family_id", unique=True, sqlite_where=_ACTIVE, postgresql_where=_ACTIVE),
        Index("ix_run_state", "state", "priority", "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("run"))
    family_id: Mapped[str] = mapped_column(ForeignKey("family.id"), index=True)
    checkpoint_id: Mapped[str | None] = mapped_column(ForeignKey("checkpoint.id"), index=True)
    kind: Mapped[str]
    """See service.runs.kinds."""
    state: Mapped[str] = mapped_column(default="queued")
    """See service.runs.states."""
    stage: Mapped[str | None]
    progress: Mapped[float] = mapped_column(default=0.0)
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Details of the stage, e.g. `{positions_per_second: 2100.5}`."""
    params: Mapped[dict[str, Any]] = mapped_column(default=dict)
    priority: Mapped[int] = mapped_column(default=0)
    attempt: Mapped[int] = mapped_column(default=0)
    """The fence: a write counts only while the run still has the attempt number of the writer."""
    max_attempts: Mapped[int] = mapped_column(default=3)
    worker: Mapped[str | None]
    request_id: Mapped[str | None]
    """The request that created the run: connects the logs of the API and the workers."""
    usage: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Resources used by the current or last attempt; see workers.execution.usage."""
    lease_until: Mapped[datetime | None]
    lines: Mapped[int] = mapped_column(default=0)
    """Number of the last log line, counting lines that were removed."""
    seconds: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Stage -> duration in seconds, summed over attempts."""
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    """`{code, title, detail}` of the last failure."""
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    updated_at: Mapped[datetime] = mapped_column(default=utcnow, onupdate=utcnow)


class Attempt(Base):
    """One attempt at a run by one worker. Keeps its error, which a run that succeeds later clears."""

    __tablename__ = "attempt"

    run_id: Mapped[str] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    worker: Mapped[str]
    outcome: Mapped[str | None]
    """State of the run afterwards: succeeded, failed, cancelled, or queued for another attempt. None: in progress."""
    error: Mapped[dict[str, Any] | None]
    usage: Mapped[dict[str, Any]] = mapped_column(default=dict)
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class LogLine(Base):
    """A line that a worker logged for a run. service.runs.lines limits how many are kept."""

    __tablename__ = "run_log"

    run_id: Mapped[str] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """From 1, over all attempts."""
    attempt: Mapped[int]
    at: Mapped[datetime]
    level: Mapped[str]
    event: Mapped[str]
    fields: Mapped[dict[str, Any]]
    """Structured fields; `exception` is a traceback."""


class Bell(Base):
    """Outbox of worker notifications: one row per queued run that has not been announced yet."""

    __tablename__ = "bell"

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    rung_at: Mapped[datetime | None] = mapped_column(index=True)


class Worker(Base):
    """A worker process, which updates `seen_at` every few seconds while it is alive."""

    __tablename__ = "worker"

    name: Mapped[str] = mapped_column(primary_key=True)
    """Host name, process id and a random part."""
    stuck: Mapped[bool] = mapped_column(default=False)
    """Its run shows no progress or does not stop when asked, and will be killed."""
    seen_at: Mapped[datetime]
    """By the database's clock."""
