"""Logging: structlog and the standard library in one stream on stderr, as JSON lines or for people."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, WrappedLogger

from featurewatch.service.config import Settings

_listeners: dict[str, Callable[[EventDict], None]] = {}


@contextmanager
def listening(run: str, listener: Callable[[EventDict], None]) -> Iterator[None]:
    """Also pass every line about this run to `listener`, whatever the level of the stream."""
    _listeners[run] = listener
    try:
        yield
    finally:
        del _listeners[run]


def configure_logging(settings: Settings) -> None:
    """Set up logging for this process. Calling it again only changes the settings."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        _notify_listener,
    ]
    # Without local variables, which both show by default: they include keys, secrets and cookies.
    tracebacks = structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
    plain = structlog.dev.plain_traceback
    ending: list[Any] = (
        [tracebacks, structlog.processors.JSONRenderer()]
        if settings.log_json
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.set_name("featurewatch")
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[remove, *ending]))
    root = logging.getLogger()
    root.handlers = [old for old in root.handlers if old.get_name() != "featurewatch"] + [handler]
    root.setLevel(settings.log_level.upper())
    # Every request already has its own line, with its id.
    logging.getLogger("uvicorn.access").disabled = True
    # The HTTP client logs the URL of each request, which may be a secret.
    for name in ("httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("alembic.runtime.migration").addFilter(_is_migration)


def _is_migration(record: logging.LogRecord) -> bool:
    """Whether Alembic runs a migration. Otherwise it logs the kind of database at every check, as by `/readyz`."""
    return record.levelno > logging.INFO or record.getMessage().startswith("Running")


def _notify_listener(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    listener = _listeners.get(str(line.get("run")))
    if listener is not None:
        listener(line)
    return line
