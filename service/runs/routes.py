"""`/v1/runs`."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from featurewatch.service.auth.guard import BY_METHOD, Caller
from featurewatch.service.kit.pages import Page, Paging
from featurewatch.service.kit.routing import accepted
from featurewatch.service.kit.sessions import AppDatabase, ReadSession, WriteSession
from featurewatch.service.models import Run
from featurewatch.service.runs import events, listing, logic
from featurewatch.service.runs.schemas import AttemptView, Level, LogLineView, RunView, view
from featurewatch.service.runs.states import RunState

router = APIRouter(prefix="/v1/runs", tags=["runs"], dependencies=[BY_METHOD])

_MOST = 2**31 - 1
EVENT = {
    "type": "object",
    "properties": {
        "event": {"enum": ["progress", "end"]},
        "data": {"type": "string", "contentMediaType": "application/json", "description": "The run."},
    },
}


@router.get("", summary="List runs")
def list_runs(
    session: ReadSession,
    paging: Paging,
    family: str | None = None,
    state: RunState | None = None,
    checkpoint: str | None = None,
) -> Page[RunView]:
    return listing.runs(session, paging, family=family, state=state, checkpoint=checkpoint)


@router.get("/{run_id}", summary="Get a run")
def get_run(run_id: str, session: ReadSession) -> RunView:
    return view(*logic.get(session, run_id))


@router.get("/{run_id}/attempts", summary="List the attempts at a run")
def run_attempts(run_id: str, session: ReadSession, paging: Paging) -> Page[AttemptView]:
    """Oldest first: how each ended, and what it cost."""
    run, _, _ = logic.get(session, run_id)
    return listing.attempts(session, paging, run)


@router.get("/{run_id}/log", summary="Get the log of a run")
def run_log(
    run_id: str,
    session: ReadSession,
    paging: Paging,
    attempt: Annotated[
        int | None, Query(ge=1, le=_MOST, description="Only lines of this attempt. Default: all attempts.")
    ] = None,
    level: Annotated[Level, Query(description="Only lines of this level or more severe.")] = Level.INFO,
    after: Annotated[int, Query(ge=0, le=_MOST, description="Only lines after this number.")] = 0,
) -> Page[LogLineView]:
    """Oldest first. Lines appear within two seconds. The last lines of a worker that is killed are lost."""
    run, _, _ = logic.get(session, run_id)
    return listing.log(session, paging, run, attempt=attempt, level=level, after=after)


@router.get(
    "/{run_id}/events",
    summary="Stream the progress of a run",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": EVENT}}}},
)
def run_events(run_id: str, session: ReadSession, database: AppDatabase, caller: Caller) -> StreamingResponse:
    """Server-sent events: `progress` carries the whole run whenever it changes, `end` is the last event. The stream
    closes when the key is revoked or expires."""
    logic.get(session, run_id)
    return events.response(database, run_id, caller)


@router.delete("/{run_id}", status_code=204, summary="Delete a run")
def delete_run(run_id: str, session: WriteSession) -> None:
    """Deletes a run that has ended, with its attempts and log. Its results stay, except for a calibration."""
    run, _, _ = logic.get(session, run_id)
    logic.delete(session, run)


@router.post("/{run_id}/cancel", status_code=202, summary="Cancel a run")
def cancel_run(run_id: str, session: WriteSession, response: Response) -> RunView:
    """A queued run is cancelled at once. A running one is `cancelling` until its worker confirms."""
    run, _, _ = logic.get(session, run_id)
    logic.request_cancel(session, run)
    return _accepted(session, run, response)


@router.post("/{run_id}/retry", status_code=202, summary="Retry a run")
def retry_run(run_id: str, session: WriteSession, response: Response) -> RunView:
    """Queues a failed or cancelled run again. It continues from the results of earlier attempts."""
    run, _, _ = logic.get(session, run_id)
    logic.retry(session, run)
    return _accepted(session, run, response)


def _accepted(session: Session, run: Run, response: Response) -> RunView:
    accepted(response, f"/v1/runs/{run.id}", retry_after=2)
    return view(*logic.get(session, run.id))
