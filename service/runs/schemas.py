"""Shapes of runs in the API."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from service.models import Run
from service.runs.states import RunState


class RunFault(BaseModel):
    """Why a run failed, or why its last attempt did."""

    model_config = ConfigDict(extra="allow")

    code: str = Field(description="For programs.", examples=["worker_lost"])
    title: str
    detail: str


class RunView(BaseModel):
    """One piece of work for the workers."""

    id: str
    family: str
    checkpoint: str | None
    kind: str = Field(
        description="`onboard`: extend the dictionary onto a checkpoint, or re-fit it. `calibrate`: judge nulls. "
        "`label`: have features labelled by an endpoint. `signature`: read signatures. `dependencies`: what features "
        "are computed from."
    )
    state: RunState
    stage: str | None = Field(description="What the worker is at.")
    progress: float = Field(description="Of the stage, 0 to 1.", ge=0, le=1)
    detail: dict[str, Any] = Field(description="What the stage has to say, e.g. positions per second.")
    attempt: int
    max_attempts: int
    seconds: dict[str, float] = Field(description="Stage -> seconds, added up over attempts.")
    result: dict[str, Any] | None
    error: RunFault | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


def view(run: Run, family: str, checkpoint: str | None) -> RunView:
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
        attempt=run.attempt,
        max_attempts=run.max_attempts,
        seconds=run.seconds,
        result=run.result,
        error=None if run.error is None else RunFault.model_validate(run.error),
        created_at=run.created_at,
        started_at=run.started_at,
        finished_at=run.finished_at,
    )
