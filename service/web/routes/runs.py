"""Runs: what the workers do, live, and what came of it."""

from typing import Annotated

from fastapi import Query, Request
from sqlalchemy.orm import Session
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from featurewatch.service.kit.pages import MAX_LIMIT, Pager, Paging
from featurewatch.service.kit.sessions import AppDatabase, ReadSession, WriteSession
from featurewatch.service.runs import routes as runs
from featurewatch.service.runs.schemas import Level, LogLineView
from featurewatch.service.runs.states import ACTIVE, FINAL, RunState
from featurewatch.service.runs.words import as_text
from featurewatch.service.web.access import SentForm, pages
from featurewatch.service.web.render import address, back, is_fragment, page

router = pages()

SHOWN = MAX_LIMIT
"""Lines of a log on a page: the last ones."""
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
    found = runs.list_runs(session, paging, family or None, chosen, checkpoint or None)
    template = "work/run_rows.html" if is_fragment(request) else "work/runs.html"
    return page(
        request, template, rows=found.data, next_cursor=found.next_cursor, family=family or "", state=state or "",
        states=list(RunState),
    )  # fmt: skip


@router.get("/runs/{run_id}")
def show_run(request: Request, run_id: str, session: ReadSession, level: LevelQuery = "") -> Response:
    run = runs.get_run(run_id, session)
    attempts = runs.run_attempts(run_id, session, Pager(MAX_LIMIT, None, request, Response())).data
    earlier = 0 if level else max(0, run.log_lines - SHOWN)
    return page(
        request, "work/run.html", run=run, attempts=attempts, live=run.state not in FINAL,
        stoppable=run.state in (*ACTIVE, RunState.QUEUED), again=run.state in (RunState.FAILED, RunState.CANCELLED),
        lines=_lines(request, run_id, session, level, earlier), earlier=earlier, level=level, attempt=0,
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
    """Lines that came since, for a page that shows those before: `attempt` is the last one's."""
    found = _lines(request, run_id, session, level, after)
    return page(request, "work/log_lines.html", lines=found, attempt=attempt)


@router.get("/runs/{run_id}/log.txt")
def download_log(request: Request, run_id: str, session: ReadSession) -> Response:
    found = list[LogLineView]()
    while len(part := _lines(request, run_id, session, "", found[-1].number if found else 0)):
        found += part
    headers = {"Content-Disposition": f'attachment; filename="{run_id}.txt"', "Cache-Control": "private, no-cache"}
    return PlainTextResponse("".join(f"{as_text(line)}\n" for line in found), headers=headers)


def _lines(request: Request, run_id: str, session: Session, level: str, after: int) -> list[LogLineView]:
    chosen = Level(level) if level in set(Level) else Level.INFO
    return runs.run_log(run_id, session, Pager(SHOWN, None, request, Response()), None, chosen, after).data


@router.get("/runs/{run_id}/events")
def run_events(request: Request, run_id: str, session: ReadSession, database: AppDatabase) -> StreamingResponse:
    """As the API's: a browser's stream can send no key."""
    return runs.run_events(request, run_id, session, database)


@router.post("/runs/{run_id}/cancel")
def cancel_run(request: Request, run_id: str, session: WriteSession, form: SentForm) -> Response:
    runs.cancel_run(run_id, session, Response())
    return back(address("runs", run_id))


@router.post("/runs/{run_id}/retry")
def retry_run(request: Request, run_id: str, session: WriteSession, form: SentForm) -> Response:
    runs.retry_run(run_id, session, Response())
    return back(address("runs", run_id))
