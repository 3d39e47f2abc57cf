"""Runs: what the workers do, live, and what came of it."""

from typing import Annotated

from fastapi import Query, Request
from starlette.responses import Response, StreamingResponse

from service.kit.pages import MAX_LIMIT, Pager, Paging
from service.kit.sessions import AppDatabase, ReadSession, WriteSession
from service.runs import routes as runs
from service.runs.states import ACTIVE, FINAL, RunState
from service.web.access import SentForm, pages
from service.web.render import address, back, is_fragment, page

router = pages()


@router.get("/runs")
def list_runs(
    request: Request,
    session: ReadSession,
    paging: Paging,
    family: Annotated[str | None, Query(max_length=200)] = None,
    state: Annotated[str | None, Query(max_length=20)] = None,
    checkpoint: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    chosen = RunState(state) if state in set(RunState) else None
    found = runs.list_runs(session, paging, family or None, chosen, checkpoint or None)
    template = "work/run_rows.html" if is_fragment(request) else "work/runs.html"
    return page(
        request, template, rows=found.data, next_cursor=found.next_cursor, family=family or "", state=state or "",
        states=list(RunState),
    )  # fmt: skip


@router.get("/runs/{run_id}")
def show_run(request: Request, run_id: str, session: ReadSession) -> Response:
    run = runs.get_run(run_id, session)
    attempts = runs.run_attempts(run_id, session, Pager(MAX_LIMIT, None, request, Response())).data
    return page(
        request, "work/run.html", run=run, attempts=attempts, live=run.state not in FINAL,
        stoppable=run.state in (*ACTIVE, RunState.QUEUED), again=run.state in (RunState.FAILED, RunState.CANCELLED),
    )  # fmt: skip


@router.get("/runs/{run_id}/events")
def run_events(run_id: str, session: ReadSession, database: AppDatabase) -> StreamingResponse:
    """As the API's: a browser's stream can send no key."""
    return runs.run_events(run_id, session, database)


@router.post("/runs/{run_id}/cancel")
def cancel_run(request: Request, run_id: str, session: WriteSession, form: SentForm) -> Response:
    runs.cancel_run(run_id, session, Response())
    return back(address("runs", run_id))


@router.post("/runs/{run_id}/retry")
def retry_run(request: Request, run_id: str, session: WriteSession, form: SentForm) -> Response:
    runs.retry_run(run_id, session, Response())
    return back(address("runs", run_id))
