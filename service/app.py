"""The ASGI application: `uvicorn --factory featurewatch.service.app:create_app`."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

from fastapi import APIRouter, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute

from featurewatch.service import __version__, openapi
from featurewatch.service.alerts.routes import router as alerts
from featurewatch.service.audit.middleware import Transactions
from featurewatch.service.audit.routes import router as audit
from featurewatch.service.auth.middleware import Authentication
from featurewatch.service.auth.routes import router as keys
from featurewatch.service.calibrations.routes import router as calibrations
from featurewatch.service.checkpoints.routes import router as checkpoints
from featurewatch.service.config import Settings
from featurewatch.service.deletions import families as deletions
from featurewatch.service.dependencies.routes import router as dependencies
from featurewatch.service.dictionaries.routes import router as dictionaries
from featurewatch.service.families.routes import router as families
from featurewatch.service.features.routes import router as features
from featurewatch.service.health.routes import router as health
from featurewatch.service.kit import problems, telemetry
from featurewatch.service.kit.db import Database
from featurewatch.service.kit.logs import configure_logging
from featurewatch.service.kit.memory import frozen_objects, return_large_blocks
from featurewatch.service.kit.middleware import BodyLimit, EntityTags, RequestContext, StorableText
from featurewatch.service.kit.private import keep_private
from featurewatch.service.kit.turns import Turns
from featurewatch.service.labels.routes import router as labels
from featurewatch.service.lineage.routes import router as lineage
from featurewatch.service.migrate import check_connection
from featurewatch.service.runs.routes import router as runs
from featurewatch.service.signatures.routes import router as signatures
from featurewatch.service.store.ledger import open_store
from featurewatch.service.web import site
from featurewatch.service.webhooks.routes import router as webhooks

ROUTERS = (
    families, checkpoints, dictionaries, features, labels, lineage, signatures, calibrations, dependencies, runs,
    webhooks, alerts, keys, audit, health,
)  # fmt: skip


def create_app(settings: Settings | None = None) -> FastAPI:
    """Create the API. Settings default to the environment.

    The app opens its database at startup, and refuses to start unless the schema is this version's.
    """
    settings = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        configure_logging(settings)
        umask = keep_private(settings)
        return_large_blocks()
        database = Database(settings.resolved_database_url)
        try:
            with database.reader.connect() as connection:
                check_connection(connection)
            telemetry.trace_database(database)
            app.state.database, app.state.turns = database, Turns(one_writer=database.is_sqlite)
            app.state.artifacts = open_store(settings, database)
            with database.read() as session:
                deletions.clear_deleted(session, settings, app.state.artifacts)
            with frozen_objects():
                yield
        finally:
            database.close()
            os.umask(umask)

    app = FastAPI(
        title="featurewatch",
        version=__version__,
        description=openapi.DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # the pages include an API reference that loads nothing from other hosts
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.state.settings = settings
    problems.install(app)
    # The middleware added last is the outermost.
    app.add_middleware(Transactions)
    app.add_middleware(StorableText)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    app.add_middleware(Authentication, settings=settings)
    app.add_middleware(EntityTags)
    app.add_middleware(RequestContext)
    if settings.cors_origin_list:
        # Outermost, so that pages can also read error responses.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origin_list,
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Idempotency-Key", "If-None-Match"],
            expose_headers=["ETag", "Link", "Location", "RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-ID"],
        )
    app.router.routes.extend(_routes())
    site.install(app)
    openapi.install(app)
    telemetry.trace_app(app)
    return app


@cache
def _routes() -> list[BaseRoute]:
    """The routes of the API and the pages, shared by the apps of a process: FastAPI takes 50 ms to analyse them."""
    parent = APIRouter()
    for router in (*ROUTERS, *site.ROUTERS):
        parent.include_router(router)
    return parent.routes
