"""`python -m featurewatch.workers`: the embedded worker, with settings from the environment."""

import argparse
import os
import signal
import sys
import threading
import time
from types import FrameType

import structlog

from featurewatch.service.config import Settings
from featurewatch.service.kit.logs import configure_logging
from featurewatch.service.kit.private import keep_private
from featurewatch.service.migrate import SchemaError
from featurewatch.workers import embedded

log = structlog.get_logger("featurewatch.worker")

NICE = 5
"""Gives way to the API next to it: someone waits for its answers, and a run takes minutes either way. Not higher: a
worker that writes holds SQLite's lock."""


def main(arguments: list[str] | None = None) -> int:
    """Work until SIGTERM or SIGINT. Exit status 0, or 1 if the database has another schema version."""
    parser = argparse.ArgumentParser(
        prog="python -m featurewatch.workers", description="Process queued runs, and run the sweeps."
    )
    parser.add_argument(
        "--pipelines",
        metavar="MODULE:NAME",
        help="a mapping from run kind to pipeline (default: the built-in ones)",
    )
    parser.add_argument("--exit-with-parent", metavar="PID", type=int, help="exit when this process exits")
    options = parser.parse_args(arguments)
    settings = Settings()
    configure_logging(settings)
    keep_private(settings)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _frame: _end(stop, got, _frame))
    if options.exit_with_parent:
        # The parent passes its own id: it may have died while this process was still importing.
        watch = threading.Thread(
            target=_watch_parent, args=(options.exit_with_parent, stop), name="parent", daemon=True
        )
        watch.start()
        os.nice(NICE)
    try:
        embedded.serve(settings, stop, pipelines=options.pipelines)
    except SchemaError as error:
        log.error("cannot start", reason=str(error))
        return 1
    return 0


def _end(stop: threading.Event, number: int, _frame: FrameType | None) -> None:
    stop.set()
    signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once


def _watch_parent(parent: int, stop: threading.Event) -> None:
    while not stop.is_set():
        if os.getppid() != parent:
            stop.set()
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
