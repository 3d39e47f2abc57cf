"""Shapes of runs in the API."""

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from featurewatch.service.runs.kinds import RunKind
from featurewatch.service.runs.states import RunState

if TYPE_CHECKING:
    # The command reads lines by these shapes, and starts without the database's tables.
    from featurewatch.service.models import Attempt, LogLine, Run


class RunFault(BaseModel):
    """Why a run failed, or why its last attempt did."""

    model_config = ConfigDict(extra="allow")

    code: str = Field(description="Stable identifier for programs.", examples=["worker-lost"])
    title: str
    detail: str


class Usage(BaseModel):
    """What an attempt cost. A value that the system does not report is null."""

    model_config = ConfigDict(extra="allow")

    device: str | None = Field(None, description="`cpu`, or the name of the GPU.")
    cpu_seconds: float | None = Field(None, description="CPU time of all threads and processes of the worker.")
    peak_memory_bytes: int | None = Field(None, description="Peak resident memory of the worker.")
    peak_device_memory_bytes: int | None = Field(None, description="Peak memory allocated on the GPU.")
    positions_per_second: dict[str, float] = Field(default_factory=dict, description="Throughput by stage.")


class AttemptView(BaseModel):
    """One attempt at a run by a worker."""

    number: int
    worker: str
    outcome: RunState | None = Field(
        description="State of the run after the attempt; `queued`: another attempt follows. Null: it is in progress."
    )
    error: RunFault | None = Field(description="Why the attempt did not succeed.")
    usage: Usage
    started_at: datetime
    ended_at: datetime | None


class Level(StrEnum):
    """Severity of a log line."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def and_above(self) -> list[str]:
        """This level and the more severe ones."""
        levels = [level.value for level in Level]
        return levels[levels.index(self.value) :]


class LogLineView(BaseModel):
    """One line of a run's log."""

    number: int = Field(description="From 1, over all attempts. `lines left out` stands for lines that are not stored.")
    attempt: int
    at: datetime
    level: Level
    event: str = Field(description="What happened.")
    fields: dict[str, Any] = Field(description="Details. `exception` is a traceback.")


class RunView(BaseModel):
    """A unit of work for the workers."""

    id: str
    family: str
    checkpoint: str | None
    kind: str = Field(description=" ".join(f"`{kind}`: {kind.description}." for kind in RunKind))
    state: RunState
    stage: str | None = Field(description="What the worker is doing.")
    progress: float = Field(description="Progress of the stage, 0 to 1.", ge=0, le=1)
    detail: dict[str, Any] = Field(description="Details of the stage, such as positions per second.")
    priority: int = Field(
        description="Higher goes first. Below 0: a background run, which lets others of its family go first."
    )
    attempt: int
    max_attempts: int
    seconds: dict[str, float] = Field(description="Seconds by stage, summed over attempts.")
    usage: Usage = Field(description="Cost of the newest attempt so far.")
    log_lines: int = Field(description="Number of the last line of its log. 0: the log is empty.")
    request_id: str | None = Field(description="Id of the request that created it, as in the logs.")
    result: dict[str, Any] | None
    error: RunFault | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


def view(run: "Run", family: str, checkpoint: str | None) -> RunView:
    """A run as the API shows it."""
    progress = min(max(run.progress, 0.0), 1.0)
    values = {"family": family, "checkpoint": checkpoint, "progress": progress, "log_lines": run.lines}
    return RunView.model_validate(run.as_dict() | values)


def attempt_view(attempt: "Attempt", run: "Run") -> AttemptView:
    """An attempt as the API shows it. Heartbeats write the cost of the current one to its run."""
    is_current = attempt.ended_at is None and attempt.number == run.attempt
    return AttemptView.model_validate(attempt.as_dict() | ({"usage": run.usage} if is_current else {}))


def line_view(line: "LogLine") -> LogLineView:
    """A line of a log as the API shows it."""
    return LogLineView.model_validate(line.as_dict())
