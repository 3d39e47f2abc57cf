"""`workers.child`: the process that does the work. Its supervisor hands it jobs and may kill it at any time.

Jobs are JSON lines on stdin, and what it has to say are JSON lines in a pipe: that it is ready, the run that it has
claimed, that it lives, and how the job ended. Between jobs it keeps what is dear to load.
"""

import argparse
import ctypes
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

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

Tell = Callable[..., None]


def main(arguments: list[str] | None = None) -> int:
    """Do jobs until stdin ends, or the job during which SIGTERM came."""
    parser = argparse.ArgumentParser(prog="python -m featurewatch.workers.child")
    parser.add_argument("--parent", metavar="PID", type=int, required=True)
    parser.add_argument("--messages", metavar="DESCRIPTOR", type=int, required=True)
    parser.add_argument("--pipelines", metavar="MODULE:NAME")
    options = parser.parse_args(arguments)
    _die_with(options.parent)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt at the terminal is for the supervisor
    settings = Settings()
    configure_logging(settings)
    os.set_inheritable(options.messages, False)  # the supervisor is to see the end of this process, not of a helper's
    tell = partial(_tell, options.messages)
    database = Database(settings.resolved_database_url)
    telemetry.trace_database(database)
    work = partial(
        _work,
        tell=tell,
        settings=settings,
        database=database,
        artifacts=open_store(settings, database, adopts=True),
        worker=runner.worker_name(),
        pipelines=_load(options.pipelines) if options.pipelines else None,
        stop=stop.is_set,
    )
    tell(ready=True)
    for line in sys.stdin:
        with _ticking(tell, options.parent):
            job = json.loads(line)
            try:
                with telemetry.within_trace(job["trace"]):
                    answer: dict[str, Any] = {"done": work(job)}
            except Exception as error:
                log.exception("a job failed")
                answer = {"failed": f"{type(error).__name__}: {error}"[:1000]}
        tell(**answer)
        if stop.is_set():
            break
    database.close()
    return 0


def _work(
    job: dict[str, Any], *, tell: Tell, pipelines: Mapping[str, Pipeline] | None, **options: Any
) -> str | int | None:
    if job["do"] == "help":
        return runner.help_others(**options)

    def claimed(run: Run) -> None:
        tell(run=run.id, attempt=run.attempt)

    return runner.run_next(run_id=job["run"], pipelines=pipelines, claimed=claimed, **options)


@contextmanager
def _ticking(tell: Tell, parent: int) -> Iterator[None]:
    """Say twice a second that the interpreter still gives other threads their turn."""
    stopped = threading.Event()

    def tick() -> None:
        while not stopped.wait(TICK_SECONDS):
            if os.getppid() != parent:  # where the kernel does not end this process with its parent
                os._exit(1)
            tell(tick=True)

    thread = threading.Thread(target=tick, name="tick", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _tell(descriptor: int, **message: Any) -> None:
    # So short a write is whole: lines of two threads do not mix.
    os.write(descriptor, json.dumps(message).encode() + b"\n")


def _die_with(parent: int) -> None:
    """End with the supervisor, also where this process holds the GIL and could not see that it has ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def _load(path: str) -> Mapping[str, Pipeline]:
    module, _, name = path.partition(":")
    return cast(Mapping[str, Pipeline], getattr(importlib.import_module(module), name))


if __name__ == "__main__":
    sys.exit(main())
