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

    code: str = Field(description="For programs.", examples=["worker-lost"])
    title: str
    detail: str


class Usage(BaseModel):
    """What an attempt has cost. Null where it is not known, as on systems that do not tell."""

    model_config = ConfigDict(extra="allow")

    device: str | None = Field(None, description="`cpu`, or the name of the GPU.")
    cpu_seconds: float | None = Field(None, description="Of all threads and processes of the worker.")
    peak_memory_bytes: int | None = Field(None, description="Most resident memory that the worker had.")
    peak_device_memory_bytes: int | None = Field(None, description="Most memory of the GPU that was allocated.")
    positions_per_second: dict[str, float] = Field(default_factory=dict, description="Of stages that count them.")


class AttemptView(BaseModel):
    """One try at a run by one worker."""

    number: int
    worker: str
    outcome: RunState | None = Field(
        description="What it left the run as; `queued`: for another attempt. Null: it goes on."
    )
    error: RunFault | None = Field(description="Why it did not succeed.")
    usage: Usage
    started_at: datetime
    ended_at: datetime | None


class Level(StrEnum):
    """How much a line of a log matters."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def and_above(self) -> list[str]:
        """This level and those that matter more."""
        levels = [level.value for level in Level]
        return levels[levels.index(self.value) :]


class LogLineView(BaseModel):
    """One line that a worker logged of a run."""

    number: int = Field(description="From 1, over all attempts. `lines left out` stands for those that are not kept.")
    attempt: int
    at: datetime
    level: Level
    event: str = Field(description="What happened, in a few words.")
    fields: dict[str, Any] = Field(description="What else it says. `exception` is a traceback.")


class RunView(BaseModel):
    """One piece of work for the workers."""

    id: str
    family: str
    checkpoint: str | None
    kind: str = Field(description=" ".join(f"`{kind}`: {kind.description}." for kind in RunKind))
    state: RunState
    stage: str | None = Field(description="What the worker is at.")
    progress: float = Field(description="Of the stage, 0 to 1.", ge=0, le=1)
    detail: dict[str, Any] = Field(description="What the stage has to say, e.g. positions per second.")
    priority: int = Field(description="Larger ones go first. Below 0: nobody asked for it, and it gives way.")
    attempt: int
    max_attempts: int
    seconds: dict[str, float] = Field(description="Stage -> seconds, added up over attempts.")
    usage: Usage = Field(description="What the newest attempt has cost so far.")
    log_lines: int = Field(description="Number of the last line of its log; 0: there is none.")
    request_id: str | None = Field(description="The request that asked for it, as the logs name it.")
    result: dict[str, Any] | None
    error: RunFault | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


def view(run: "Run", family: str, checkpoint: str | None) -> RunView:
    """A run as the API shows it."""
    return RunView(
        id=run.id,
        family=family,
        checkpoint=checkpoint,
        kind=run.kind,
        state=RunState(run.state),
        stage=run.stage,
        progress=min(max(run.progress, 0.0), 1.0),
        detail=run.detail,
        priority=run.priority,
        attempt=run.attempt,
        max_attempts=run.max_attempts,
        seconds=run.seconds,
        usage=Usage.model_validate(run.usage),
        log_lines=run.lines,
        request_id=run.request_id,
        result=run.result,
        error=None if run.error is None else RunFault.model_validate(run.error),
        created_at=run.created_at,
        started_at=run.started_at,
        finished_at=run.finished_at,
    )


def attempt_view(one: "Attempt", run: "Run") -> AttemptView:
    """An attempt as the API shows it. What one that goes on has cost is with its run: heartbeats write there."""
    usage = run.usage if one.ended_at is None and one.number == run.attempt else one.usage
    return AttemptView(
        number=one.number,
        worker=one.worker,
        outcome=None if one.outcome is None else RunState(one.outcome),
        error=None if one.error is None else RunFault.model_validate(one.error),
        usage=Usage.model_validate(usage),
        started_at=one.started_at,
        ended_at=one.ended_at,
    )


def line_view(line: "LogLine") -> LogLineView:
    """A line of a log as the API shows it."""
    return LogLineView(
        number=line.number,
        attempt=line.attempt,
        at=line.at,
        level=Level(line.level),
        event=line.event,
        fields=line.fields,
    )
