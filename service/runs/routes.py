"""`/v1/runs`: what the workers do, have done and will do."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from featurewatch.service.auth.guard import BY_METHOD, Caller
from featurewatch.service.kit.pages import Page, Paging
from featurewatch.service.kit.sessions import AppDatabase, ReadSession, WriteSession
from featurewatch.service.models import Run
from featurewatch.service.runs import events, listing, logic
from featurewatch.service.runs.schemas import AttemptView, Level, LogLineView, RunView, view
from featurewatch.service.runs.states import RunState

router = APIRouter(prefix="/v1/runs", tags=["runs"], dependencies=[BY_METHOD])

RETRY_AFTER = "2"
_MOST = 2**31 - 1
EVENT = {
    "type": "object",
    "properties": {
        "event": {"enum": ["progress", "end"]},
        "data": {"type": "string", "contentMediaType": "application/json", "description": "The run."},
    },
}


@router.get("", summary="Runs, newest first")
def list_runs(
    session: ReadSession,
    paging: Paging,
    family: str | None = None,
    state: RunState | None = None,
    checkpoint: str | None = None,
) -> Page[RunView]:
    return listing.runs(session, paging, family=family, state=state, checkpoint=checkpoint)


@router.get("/{run_id}", summary="One run")
def get_run(run_id: str, session: ReadSession) -> RunView:
    return view(*logic.get(session, run_id))


@router.get("/{run_id}/attempts", summary="Each try at a run by a worker: how it ended, and what it cost")
def run_attempts(run_id: str, session: ReadSession, paging: Paging) -> Page[AttemptView]:
    """Oldest first."""
    run, _, _ = logic.get(session, run_id)
    return listing.attempts(session, paging, run)


@router.get("/{run_id}/log", summary="What its workers logged")
def run_log(
    run_id: str,
    session: ReadSession,
    paging: Paging,
    attempt: Annotated[int | None, Query(ge=1, le=_MOST, description="Left out: all of them.")] = None,
    level: Annotated[Level, Query(description="Lines of this level and of those that matter more.")] = Level.INFO,
    after: Annotated[int, Query(ge=0, le=_MOST, description="Lines with larger numbers: what came since.")] = 0,
) -> Page[LogLineView]:
    """Oldest first. A line is there within a second or two; a worker that is killed takes its last ones with it."""
    run, _, _ = logic.get(session, run_id)
    return listing.log(session, paging, run, attempt=attempt, level=level, after=after)


@router.get(
    "/{run_id}/events",
    summary="Progress as server-sent events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": EVENT}}}},
)
def run_events(run_id: str, session: ReadSession, database: AppDatabase, caller: Caller) -> StreamingResponse:
    """`progress` events carry the whole run whenever it changed; `end` is the last one. The stream closes when the key
    is revoked or expires."""
    logic.get(session, run_id)
    return events.response(database, run_id, caller)


@router.delete("/{run_id}", status_code=204, summary="Delete a run that ended")
def delete_run(run_id: str, session: WriteSession) -> None:
    """With its attempts and its log. What it wrote of its checkpoint stays; a calibration is its run, and goes."""
    run, _, _ = logic.get(session, run_id)
    logic.delete(session, run)


@router.post("/{run_id}/cancel", status_code=202, summary="Ask a run to stop")
def cancel_run(run_id: str, session: WriteSession, response: Response) -> RunView:
    """A queued run is cancelled at once; a running one is `cancelling` until its worker confirms."""
    run, _, _ = logic.get(session, run_id)
    logic.request_cancel(session, run)
    return _accepted(session, run, response)


@router.post("/{run_id}/retry", status_code=202, summary="Queue a failed or cancelled run again")
def retry_run(run_id: str, session: WriteSession, response: Response) -> RunView:
    """It goes on from what its earlier attempts have made."""
    run, _, _ = logic.get(session, run_id)
    logic.retry(session, run)
    return _accepted(session, run, response)


def _accepted(session: Session, run: Run, response: Response) -> RunView:
    response.headers["Location"] = f"/v1/runs/{run.id}"
    response.headers["Retry-After"] = RETRY_AFTER
    return view(*logic.get(session, run.id))
