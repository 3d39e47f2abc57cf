"""The list of runs, and the live page of one run."""

from typing import Annotated

from fastapi import Query, Request
from sqlalchemy.orm import Session
from starlette.responses import PlainTextResponse, Response

from featurewatch.service.auth.guard import Caller
from featurewatch.service.kit.pages import MAX_LIMIT, Pager, Paging
from featurewatch.service.kit.sessions import AppDatabase, ReadSession, WriteSession
from featurewatch.service.models import Run
from featurewatch.service.runs import events, listing, logic
from featurewatch.service.runs.schemas import Level, LogLineView, view
from featurewatch.service.runs.states import ACTIVE, FINAL, RunState
from featurewatch.service.runs.words import as_text
from featurewatch.service.web.access import pages
from featurewatch.service.web.render import address, back, is_fragment, page

router = pages()

LOG_LINES = MAX_LIMIT
"""Log lines on a page: the last ones."""
LevelQuery = Annotated[str, Query(max_length=20)]


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
    runs = listing.runs(session, paging, family=family or None, state=chosen, checkpoint=checkpoint or None)
    template = "work/run_rows.html" if is_fragment(request) else "work/runs.html"
    return page(
        request, template, rows=runs.data, next_cursor=runs.next_cursor, family=family or "", state=state or "",
        states=list(RunState),
    )  # fmt: skip


@router.get("/runs/{run_id}")
def show_run(request: Request, run_id: str, session: ReadSession, level: LevelQuery = "") -> Response:
    row, family, checkpoint = logic.get(session, run_id)
    run = view(row, family, checkpoint)
    attempts = listing.attempts(session, Pager.first_page(request), row).data
    earlier = 0 if level else max(0, run.log_lines - LOG_LINES)
    return page(
        request, "work/run.html", run=run, attempts=attempts, live=run.state not in FINAL,
        stoppable=run.state in (*ACTIVE, RunState.QUEUED), again=run.state in (RunState.FAILED, RunState.CANCELLED),
        lines=_lines(request, session, row, level, earlier), earlier=earlier, level=level, attempt=0,
    )  # fmt: skip


@router.get("/runs/{run_id}/log")
def more_lines(
    request: Request,
    run_id: str,
    session: ReadSession,
    level: LevelQuery = "",
    after: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    attempt: int = 0,
) -> Response:
    """Log lines with numbers above `after`. attempt: the attempt of the last line on the page."""
    run, _, _ = logic.get(session, run_id)
    lines = _lines(request, session, run, level, after)
    return page(request, "work/log_lines.html", lines=lines, attempt=attempt)


@router.get("/runs/{run_id}/log.txt")
def download_log(request: Request, run_id: str, session: ReadSession) -> Response:
    run, _, _ = logic.get(session, run_id)
    lines = list[LogLineView]()
    while piece := _lines(request, session, run, "", lines[-1].number if lines else 0):
        lines += piece
    headers = {"Content-Disposition": f'attachment; filename="{run_id}.txt"', "Cache-Control": "private, no-cache"}
    return PlainTextResponse("".join(f"{as_text(line)}\n" for line in lines), headers=headers)


def _lines(request: Request, session: Session, run: Run, level: str, after: int) -> list[LogLineView]:
    chosen = Level(level) if level in set(Level) else Level.INFO
    return listing.log(session, Pager.first_page(request, LOG_LINES), run, level=chosen, after=after).data


@router.get("/runs/{run_id}/events")
def run_events(run_id: str, session: ReadSession, database: AppDatabase, caller: Caller) -> Response:
    """The same stream as in the API, for which a browser cannot send a key."""
    logic.get(session, run_id)
    return events.response(database, run_id, caller)


@router.post("/runs/{run_id}/cancel")
def cancel_run(run_id: str, session: WriteSession) -> Response:
    logic.request_cancel(session, logic.get(session, run_id)[0])
    return back(address("runs", run_id))


@router.post("/runs/{run_id}/retry")
def retry_run(run_id: str, session: WriteSession) -> Response:
    logic.retry(session, logic.get(session, run_id)[0])
    return back(address("runs", run_id))
