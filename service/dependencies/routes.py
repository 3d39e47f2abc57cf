"""`/v1/families/{family}/checkpoints/{name}/dependencies` and `/features/{feature}/dependencies`."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from featurewatch.service.auth.guard import BY_METHOD
from featurewatch.service.checkpoints.lookup import WriteCheckpoint
from featurewatch.service.dependencies import logic
from featurewatch.service.dependencies.schemas import Dependencies, DependenciesIn, Method
from featurewatch.service.families.lookup import ReadFamily, WriteFamily
from featurewatch.service.features import logic as features
from featurewatch.service.kit.routing import accepted
from featurewatch.service.kit.sessions import AppArtifacts, ReadSession, WriteSession
from featurewatch.service.runs.schemas import RunView
from featurewatch.service.runs.schemas import view as run_view

router = APIRouter(prefix="/v1/families/{family}", tags=["dependencies"], dependencies=[BY_METHOD])


@router.post(
    "/checkpoints/{name}/dependencies", status_code=202, summary="Find the dependencies of features in a checkpoint"
)
def find(
    family: WriteFamily, checkpoint: WriteCheckpoint, body: DependenciesIn, session: WriteSession, response: Response
) -> RunView:
    """Queues a run that finds edges from earlier features and tokens, edges to the next token, and the effect of each
    feature. They are compared with the parent's dependencies if those are known."""
    run = logic.create(session, family, checkpoint, body)
    accepted(response, f"/v1/runs/{run.id}")
    return run_view(run, family.name, checkpoint.name)


@router.get("/features/{feature}/dependencies", summary="Get the dependencies of a feature and whether they changed")
def show(
    family: ReadFamily,
    feature: str,
    session: ReadSession,
    artifacts: AppArtifacts,
    checkpoint: Annotated[str | None, Query(description="Default: the one examined last.")] = None,
    baseline: Annotated[str | None, Query(description="Checkpoint to compare with.")] = None,
    method: Annotated[Method | None, Query(description="Default: the one used last.")] = None,
) -> Dependencies:
    number = features.get(session, family, feature).number
    return logic.get(session, artifacts, family, number, checkpoint=checkpoint, baseline=baseline, method=method)
