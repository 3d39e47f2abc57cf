"""The process that does the work. Its supervisor sends it jobs, and may kill it at any time.

Jobs arrive as JSON lines on stdin. It reports as JSON lines in a pipe: that it is ready, the run it claimed, that it is
alive, and how the job ended. It stays between jobs, so that torch is imported once.
"""

import argparse
import ctypes
import json
import os
import pkgutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import structlog

from featurewatch.service.config import Settings
from featurewatch.service.kit import telemetry
from featurewatch.service.kit.db import Database
from featurewatch.service.kit.logs import configure_logging
from featurewatch.service.models import Run
from featurewatch.service.store.ledger import open_store
from featurewatch.workers import runner
from featurewatch.workers.runner import Pipeline

log = structlog.get_logger("featurewatch.worker")

TICK_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1

Report = Callable[..., None]


def main(arguments: list[str] | None = None) -> int:
    """Work until stdin ends, or until the end of the job during which SIGTERM came."""
    parser = argparse.ArgumentParser(prog="python -m featurewatch.workers.supervision.child")
    parser.add_argument("--parent", metavar="PID", type=int, required=True)
    parser.add_argument("--messages", metavar="DESCRIPTOR", type=int, required=True)
    parser.add_argument("--pipelines", metavar="MODULE:NAME")
    options = parser.parse_args(arguments)
    _die_with(options.parent)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor
    settings = Settings()
    configure_logging(settings)
    os.set_inheritable(options.messages, False)  # it closes when this process ends, not its children
    report = partial(_report, options.messages)
    database = Database(settings.resolved_database_url)
    telemetry.trace_database(database)
    work = partial(
        _work,
        report=report,
        settings=settings,
        database=database,
        artifacts=open_store(settings, database, adopts=True),
        worker=runner.worker_name(),
        pipelines=pkgutil.resolve_name(options.pipelines) if options.pipelines else None,
        stop=stop.is_set,
    )
    report(ready=True)
    for line in sys.stdin:
        with _ticking(report, options.parent):
            job = json.loads(line)
            try:
                with telemetry.within_trace(job["trace"]):
                    outcome: dict[str, Any] = {"done": work(job)}
            except Exception as error:
                log.exception("a job failed")
                outcome = {"failed": f"{type(error).__name__}: {error}"[:1000]}
        report(**outcome)
        if stop.is_set():
            break
    database.close()
    return 0


def _work(
    job: dict[str, Any], *, report: Report, pipelines: Mapping[str, Pipeline] | None, **options: Any
) -> str | int | None:
    if job["do"] == "help":
        return runner.help_others(**options)

    def claimed(run: Run) -> None:
        report(run=run.id, attempt=run.attempt)

    return runner.run_next(run_id=job["run"], pipelines=pipelines, claimed=claimed, **options)


@contextmanager
def _ticking(report: Report, parent: int) -> Iterator[None]:
    """Report twice a second that the interpreter still lets other threads run."""
    stopped = threading.Event()

    def tick() -> None:
        while not stopped.wait(TICK_SECONDS):
            if os.getppid() != parent:  # on systems without PR_SET_PDEATHSIG
                os._exit(1)
            report(tick=True)

    thread = threading.Thread(target=tick, name="tick", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _report(descriptor: int, **message: Any) -> None:
    # A write this short is atomic, so lines of two threads do not mix.
    os.write(descriptor, json.dumps(message).encode() + b"\n")


def _die_with(parent: int) -> None:
    """End with the supervisor, even while a library holds the GIL and no Python code runs here."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
