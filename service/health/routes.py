"""`/healthz`, `/readyz` and `/metrics`."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from featurewatch.service.auth.guard import READ
from featurewatch.service.health import logic
from featurewatch.service.health.metrics import scrape
from featurewatch.service.kit.problems import UnavailableError
from featurewatch.service.kit.sessions import AppArtifacts, AppDatabase, ReadSession

router = APIRouter(tags=["status"])


class Health(BaseModel):
    """The process is responding."""

    status: str = "ok"


class Workers(BaseModel):
    """Workers seen within the last 45 seconds. Without workers the API still responds, and runs wait."""

    running: int
    stuck: int = Field(
        description="Workers whose run shows no progress or does not stop when asked. They end the run without help."
    )


class Readiness(BaseModel):
    """The service is ready."""

    status: str = "ready"
    checks: dict[str, str] = Field(description="Each check and its result, `ok`.")
    workers: Workers | None = Field(description="Null if the database cannot be reached.")


@router.get("/healthz", summary="Check that the process responds")
async def healthz() -> Health:
    return Health()


@router.get("/readyz", summary="Check that the service is ready; 503 names the failed checks")
def readyz(database: AppDatabase, artifacts: AppArtifacts) -> Readiness:
    checks = logic.readiness(database, artifacts)
    failed = [name for name, state in checks.items() if state != "ok"]
    if failed:
        detail = " ".join(f"{name}: {checks[name]}" for name in failed)
        raise UnavailableError(detail, code="not-ready", headers={"Retry-After": "5"}, checks=checks)
    counts = logic.workers(database)
    return Readiness(checks=checks, workers=None if counts is None else Workers(running=counts[0], stuck=counts[1]))


@router.get(
    "/metrics",
    summary="Get the Prometheus metrics",
    dependencies=[READ],
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}},
)
def metrics(session: ReadSession) -> Response:
    return Response(scrape(session), headers={"Content-Type": CONTENT_TYPE_LATEST})
