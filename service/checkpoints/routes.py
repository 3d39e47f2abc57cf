"""`/v1/families/{family}/checkpoints`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Response
from sqlalchemy.orm import Session

from featurewatch.service.auth.guard import BY_METHOD
from featurewatch.service.checkpoints import logic, queries
from featurewatch.service.checkpoints.inspect import Examined
from featurewatch.service.checkpoints.report import MEDIA_TYPES, Report, choose_format, render, report
from featurewatch.service.checkpoints.schemas import CheckpointIn, CheckpointOut, CheckpointState, Registration, view
from featurewatch.service.deletions import checkpoints as deletion
from featurewatch.service.families import logic as families
from featurewatch.service.features.queries import Filter
from featurewatch.service.kit.pages import Page, Paging
from featurewatch.service.kit.sessions import AppArtifacts, AppDatabase, AppSettings, ReadSession, WriteSession
from featurewatch.service.kit.turns import IN_TURN
from featurewatch.service.models import Checkpoint, Family
from featurewatch.service.runs import schemas as run_schemas

router = APIRouter(prefix="/v1/families/{family}/checkpoints", tags=["checkpoints"], dependencies=[BY_METHOD])

RETRY_AFTER_S = 2


def _examined(family: str, body: CheckpointIn, database: AppDatabase, settings: AppSettings) -> Examined:
    """Inspect the registration before the request queues for its turn to write.

    The session ends here, so that a request in the queue does not hold a connection.
    """
    with database.read() as session:
        return logic.examine(session, settings, family, body)


@router.post(
    "",
    status_code=202,
    summary="Register a checkpoint for workers to read and judge",
    responses={200: {"description": "Already registered with the same content.", "model": Registration}},
)
def register_checkpoint(
    family: str,
    body: CheckpointIn,
    examined: Annotated[Examined, Depends(_examined)],
    session: WriteSession,
    settings: AppSettings,
    response: Response,
) -> Registration:
    checkpoint, run, created = logic.register(session, settings, family, body, examined)
    response.status_code = 202 if created else 200
    checkpoint_view = _views(session, families.get(session, family), [checkpoint])[0]
    if run is None:
        response.headers["Location"] = f"/v1/families/{family}/checkpoints/{checkpoint.name}"
        return Registration(checkpoint=checkpoint_view, run=None)
    response.headers["Location"] = f"/v1/runs/{run.id}"
    response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return Registration(checkpoint=checkpoint_view, run=run_schemas.view(run, family, checkpoint.name))


@router.get("", summary="List the checkpoints of a family, oldest first")
def list_checkpoints(
    family: str, session: ReadSession, paging: Paging, state: Annotated[CheckpointState | None, Query()] = None
) -> Page[CheckpointOut]:
    row = families.get(session, family)
    order = f"checkpoints:{row.id}:{state}"
    fetched = queries.page(session, row.id, state=state, after=paging.after(order), limit=paging.limit)
    checkpoints, cursor = paging.page(fetched, order, lambda checkpoint: (checkpoint.created_at, checkpoint.id))
    return Page(data=_views(session, row, checkpoints), next_cursor=cursor)


@router.get("/{name}", summary="Get a checkpoint")
def get_checkpoint(family: str, name: str, session: ReadSession) -> CheckpointOut:
    row = families.get(session, family)
    return _views(session, row, [logic.get(session, row, name)])[0]


@router.delete("/{name}", status_code=204, summary="Delete a checkpoint")
def delete_checkpoint(
    family: str,
    name: str,
    session: WriteSession,
    reparent: Annotated[
        bool,
        Query(description="Attach its children to its parent. Without it, deleting a checkpoint with children is 409."),
    ] = False,
) -> None:
    """Deletes the checkpoint with its runs, verdicts and alerts. Reparented children are re-judged against their new
    parent from stored measurements. Artifacts that nothing else refers to are removed later, per retention."""
    row = families.get(session, family)
    deletion.delete(session, row, logic.get(session, row, name), reparent=reparent)


@router.get(
    "/{name}/report",
    summary="Get the report on a checkpoint",
    response_model=Report,
    responses={200: {"content": {"text/markdown": {}, "text/html": {}}}, 406: {"description": "Unsupported format"}},
    dependencies=[IN_TURN],
)
def get_report(
    family: str,
    name: str,
    session: ReadSession,
    artifacts: AppArtifacts,
    baseline: Annotated[str | None, Query(description="Name of the baseline. Default: the parent.")] = None,
    min_change: Annotated[
        float | None, Query(ge=0, description="Only findings with at least this `change`; 1 is halved or doubled.")
    ] = None,
    max_q: Annotated[
        float | None,
        Query(ge=0, le=1, description="Only findings with at most this `q_value`. New features have none."),
    ] = None,
    form: Annotated[
        str | None,
        Query(alias="format", description="Default: chosen by `Accept`.", json_schema_extra={"enum": [*MEDIA_TYPES]}),
    ] = None,
    accept: Annotated[str, Header()] = "*/*",
) -> Response:
    chosen = choose_format(form, accept)
    wanted = Filter(min_change=min_change, max_q=max_q)
    document = report(session, artifacts, families.get(session, family), name, baseline, wanted)
    text = document.model_dump_json() if chosen == "json" else render(document, chosen)
    return Response(text, media_type=MEDIA_TYPES[chosen])


def _views(session: Session, family: Family, rows: list[Checkpoint]) -> list[CheckpointOut]:
    runs = queries.newest_runs(session, [row.id for row in rows])
    names = queries.names(session, [row.parent_id for row in rows if row.parent_id])
    kept = queries.activations_kept(session, [row.id for row in rows])
    views = []
    for row in rows:
        run = run_schemas.view(runs[row.id], family.name, row.name) if row.id in runs else None
        views.append(view(row, family.name, names.get(row.parent_id or ""), run, kept.get(row.id)))
    return views
