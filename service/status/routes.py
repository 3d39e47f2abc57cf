"""`/healthz`, `/readyz` and `/metrics`."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from featurewatch.service.auth.guard import READ
from featurewatch.service.kit.problems import UnavailableError
from featurewatch.service.kit.sessions import AppArtifacts, AppDatabase, ReadSession
from featurewatch.service.status import logic
from featurewatch.service.status.metrics import scrape

router = APIRouter(tags=["status"])


class Health(BaseModel):
    """The process answers."""

    status: str = "ok"


class Workers(BaseModel):
    """Workers that take runs, seen within the last 45 seconds. Without one the API still serves, and runs wait."""

    running: int
    stuck: int = Field(
        description="Those whose run gives no sign of life, or does not stop as it should; they end it by themselves."
    )


class Readiness(BaseModel):
    """The service can serve."""

    status: str = "ready"
    checks: dict[str, str] = Field(description="`ok` for each thing that the service needs.")
    workers: Workers | None = Field(description="Null where the database cannot say.")


@router.get("/healthz", summary="Whether the process answers")
async def healthz() -> Health:
    return Health()


@router.get("/readyz", summary="Whether the service can serve; 503 says what is missing")
def readyz(database: AppDatabase, artifacts: AppArtifacts) -> Readiness:
    checks = logic.readiness(database, artifacts)
    missing = [name for name, state in checks.items() if state != "ok"]
    if missing:
        detail = " ".join(f"{name}: {checks[name]}" for name in missing)
        raise UnavailableError(detail, code="not-ready", headers={"Retry-After": "5"}, checks=checks)
    counts = logic.workers(database)
    return Readiness(checks=checks, workers=None if counts is None else Workers(running=counts[0], stuck=counts[1]))


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    dependencies=[READ],
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}},
)
def metrics(session: ReadSession) -> Response:
    return Response(scrape(session), headers={"Content-Type": CONTENT_TYPE_LATEST})
