"""`/v1/families/{family}/checkpoints/{name}/dependencies` and `/features/{feature}/dependencies`."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from featurewatch.service.auth.guard import BY_METHOD
from featurewatch.service.dependencies import logic
from featurewatch.service.dependencies.schemas import Dependencies, DependenciesIn, Method
from featurewatch.service.families import logic as families
from featurewatch.service.features import logic as features
from featurewatch.service.kit.sessions import AppArtifacts, ReadSession, WriteSession
from featurewatch.service.runs.schemas import RunView
from featurewatch.service.runs.schemas import view as run_view

router = APIRouter(prefix="/v1/families/{family}", tags=["dependencies"], dependencies=[BY_METHOD])

RETRY_AFTER_S = 5


@router.post(
    "/checkpoints/{name}/dependencies", status_code=202, summary="Find the dependencies of features in a checkpoint"
)
def find(family: str, name: str, body: DependenciesIn, session: WriteSession, response: Response) -> RunView:
    """Queues a run that finds edges from earlier features and tokens, edges to the next token, and the effect of each
    feature. They are compared with the parent's dependencies if those are known."""
    run, checkpoint = logic.create(session, family, name, body)
    response.headers["Location"] = f"/v1/runs/{run.id}"
    response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return run_view(run, family, checkpoint.name)


@router.get("/features/{feature}/dependencies", summary="Get the dependencies of a feature and whether they changed")
def show(
    family: str,
    feature: str,
    session: ReadSession,
    artifacts: AppArtifacts,
    checkpoint: Annotated[str | None, Query(description="Default: the one examined last.")] = None,
    baseline: Annotated[str | None, Query(description="Checkpoint to compare with.")] = None,
    method: Annotated[Method | None, Query(description="Default: the one used last.")] = None,
) -> Dependencies:
    row = families.get(session, family)
    number = features.get(session, row, feature).number
    return logic.get(session, artifacts, row, number, checkpoint=checkpoint, baseline=baseline, method=method)
