"""OpenTelemetry: off unless the extra `otel` is installed and the standard variable OTEL_TRACES_EXPORTER is set.

The SDK reads the other OTEL_ variables itself. Call these functions in the process to trace: the threads of exporters
do not survive a fork.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

import structlog
from fastapi import FastAPI

from featurewatch.service.config import TelemetrySettings
from featurewatch.service.kit import extras
from featurewatch.service.kit.db import Database

log = structlog.get_logger("featurewatch.telemetry")


def trace_app(app: FastAPI) -> None:
    """Add a span for each request. Call it before the application starts."""
    if _started():
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor  # noqa: PLC0415

        FastAPIInstrumentor.instrument_app(app)


def trace_database(database: Database) -> None:
    """Add a span for each SQL statement."""
    if _started():
        from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor  # noqa: PLC0415

        # It declares support only for versions of SQLAlchemy older than itself, but uses only engine events.
        SQLAlchemyInstrumentor().instrument(engines=[*database.engines], skip_dep_check=True)


def trace_tasks() -> None:
    """Add a span for each task that is sent or executed. Both belong to the sender's trace."""
    if _started():
        from opentelemetry.instrumentation.celery import CeleryInstrumentor  # noqa: PLC0415

        CeleryInstrumentor().instrument()


def trace_headers() -> dict[str, str]:
    """The current span as headers, for another process to continue."""
    headers: dict[str, str] = {}
    if _started():
        from opentelemetry.propagate import inject  # noqa: PLC0415

        inject(headers)
    return headers


@contextmanager
def within_trace(headers: Mapping[str, str]) -> Iterator[None]:
    """Make spans in the block children of the span in `headers`, which come from `trace_headers`."""
    if not headers or not _started():
        yield
        return
    from opentelemetry import context  # noqa: PLC0415
    from opentelemetry.propagate import extract  # noqa: PLC0415

    token = context.attach(extract(headers))
    try:
        yield
    finally:
        context.detach(token)


@cache
def _started() -> bool:
    """Whether this process is traced. The first call sets up tracing."""
    settings = TelemetrySettings()
    if settings.sdk_disabled or settings.traces_exporter in ("", "none"):
        return False
    try:
        from opentelemetry.distro import OpenTelemetryConfigurator  # noqa: PLC0415
    except ImportError:
        log.warning(f"OTEL_TRACES_EXPORTER is set, but OpenTelemetry is not installed: {extras.install('otel')}")
        return False
    OpenTelemetryConfigurator().configure()
    return True
