"""`/v1/families/{family}/checkpoints`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Response

from featurewatch.service.auth.guard import BY_METHOD
from featurewatch.service.checkpoints import logic
from featurewatch.service.checkpoints.inspect import Examined
from featurewatch.service.checkpoints.lookup import ReadCheckpoint, WriteCheckpoint
from featurewatch.service.checkpoints.schemas import CheckpointIn, CheckpointOut, CheckpointState, Registration
from featurewatch.service.deletions import checkpoints as deletion
from featurewatch.service.families import logic as families
from featurewatch.service.families.lookup import ReadFamily, WriteFamily
from featurewatch.service.features.queries import Filter
from featurewatch.service.kit.pages import Page, Paging
from featurewatch.service.kit.routing import accepted
from featurewatch.service.kit.sessions import AppArtifacts, AppDatabase, AppSettings, ReadSession, WriteSession
from featurewatch.service.kit.turns import IN_TURN
from featurewatch.service.reports.checkpoints import MEDIA_TYPES, Report, choose_format, render, report
from featurewatch.service.runs.schemas import view as run_view

router = APIRouter(prefix="/v1/families/{family}/checkpoints", tags=["checkpoints"], dependencies=[BY_METHOD])


def _examined(family: str, body: CheckpointIn, database: AppDatabase, settings: AppSettings) -> Examined:
    """Inspect the registration before the request queues for its turn to write.

    The session ends here, so that a request in the queue does not hold a connection.
    """
    with database.read() as session:
        return logic.examine(session, settings, families.get(session, family), body)


@router.post(
    "",
    status_code=202,
    summary="Register a checkpoint for workers to read and judge",
    responses={200: {"description": "Already registered with the same content.", "model": Registration}},
)
def register_checkpoint(
    body: CheckpointIn,
    examined: Annotated[Examined, Depends(_examined)],
    family: WriteFamily,
    session: WriteSession,
    settings: AppSettings,
    response: Response,
) -> Registration:
    checkpoint, run, created = logic.register(session, settings, family, body, examined)
    response.status_code = 202 if created else 200
    checkpoint_view = logic.views(session, family, [checkpoint])[0]
    if run is None:
        response.headers["Location"] = f"/v1/families/{family.name}/checkpoints/{checkpoint.name}"
        return Registration(checkpoint=checkpoint_view, run=None)
    accepted(response, f"/v1/runs/{run.id}", retry_after=2)
    return Registration(checkpoint=checkpoint_view, run=run_view(run, family.name, checkpoint.name))


@router.get("", summary="List the checkpoints of a family, oldest first")
def list_checkpoints(
    family: ReadFamily, session: ReadSession, paging: Paging, state: Annotated[CheckpointState | None, Query()] = None
) -> Page[CheckpointOut]:
    return logic.page(session, family, paging, state)


@router.get("/{name}", summary="Get a checkpoint")
def get_checkpoint(family: ReadFamily, checkpoint: ReadCheckpoint, session: ReadSession) -> CheckpointOut:
    return logic.views(session, family, [checkpoint])[0]


@router.delete("/{name}", status_code=204, summary="Delete a checkpoint")
def delete_checkpoint(
    family: WriteFamily,
    checkpoint: WriteCheckpoint,
    session: WriteSession,
    reparent: Annotated[
        bool,
        Query(description="Attach its children to its parent. Without it, deleting a checkpoint with children is 409."),
    ] = False,
) -> None:
    """Deletes the checkpoint with its runs, verdicts and alerts. Reparented children are re-judged against their new
    parent from stored measurements. Artifacts that nothing else refers to are removed later, per retention."""
    deletion.delete(session, family, checkpoint, reparent=reparent)


@router.get(
    "/{name}/report",
    summary="Get the report on a checkpoint",
    response_model=Report,
    responses={200: {"content": {"text/markdown": {}, "text/html": {}}}, 406: {"description": "Unsupported format"}},
    dependencies=[IN_TURN],
)
def get_report(
    family: ReadFamily,
    name: str,
    session: ReadSession,
    artifacts: AppArtifacts,
    baseline: Annotated[str | None, Query(description="Name of the baseline. Default: the parent.")] = None,
    min_change: Annotated[
        float | None, Query(ge=0, description="Only findings with at least this `change`; 1 means halved or doubled.")
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
    document = report(session, artifacts, family, name, baseline, wanted)
    text = document.model_dump_json() if chosen == "json" else render(document, chosen)
    return Response(text, media_type=MEDIA_TYPES[chosen])
