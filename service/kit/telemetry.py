"""OpenTelemetry: off unless the extra `otel` is installed and the standard variable OTEL_TRACES_EXPORTER names one.

Its SDK reads the other OTEL_ variables itself. Call these in the process that is traced: exporters have threads, which
do not outlive a fork.
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
    """A span for each request; before the application starts."""
    if _started():
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor  # noqa: PLC0415

        FastAPIInstrumentor.instrument_app(app)


def trace_database(database: Database) -> None:
    """A span for each statement."""
    if _started():
        from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor  # noqa: PLC0415

        # It declares no SQLAlchemy that is newer than itself, and uses only the engine's events.
        SQLAlchemyInstrumentor().instrument(engines=[*database.engines], skip_dep_check=True)


def trace_tasks() -> None:
    """A span for each task that is sent or carried out, in one trace from the sender on."""
    if _started():
        from opentelemetry.instrumentation.celery import CeleryInstrumentor  # noqa: PLC0415

        CeleryInstrumentor().instrument()


def trace_headers() -> dict[str, str]:
    """The span that this is part of, for a process that goes on with it."""
    headers: dict[str, str] = {}
    if _started():
        from opentelemetry.propagate import inject  # noqa: PLC0415

        inject(headers)
    return headers


@contextmanager
def within_trace(headers: Mapping[str, str]) -> Iterator[None]:
    """Spans in the block are parts of the one that `trace_headers` gave elsewhere."""
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
    """Whether this process is traced; the first call sets it up."""
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
