"""The real pipeline in a worker that stands still, or dies, by its own hand: `--pipelines`.

Stages are over in tenths of a second here, and the transaction that writes the verdicts in less: neither can be hit
from outside for sure, so the worker itself does it, at a place that it is told.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.orm import Session

from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines import PIPELINES as REAL

Pipelines = dict[str, Callable[[Execution], None]]


def _standing_still(stage: str, part: float = 0.0, saved: str | None = None) -> Pipelines:
    """Once, in a stage, when this part of it is done and a file of this pattern in `partial` was saved since."""
    stood = threading.Event()

    def onboard(execution: Execution) -> None:
        enter, report = execution.stage, execution.progress
        before: set[tuple[str, int]] | None = None

        def found() -> set[tuple[str, int]]:
            files = (execution.settings.data_dir / "partial").glob(saved or "")
            return {(str(path), path.stat().st_mtime_ns) for path in files}

        @contextmanager
        def entering(name: str) -> Iterator[None]:
            with enter(name):
                progress(0.0)
                yield

        def progress(fraction: float, /, **detail: Any) -> None:
            nonlocal before
            report(fraction, **detail)
            if execution.snapshot()[0] != stage or fraction < part or stood.is_set():
                return
            if saved and before is None:
                before = found()
            if not saved or found() - (before or set()):
                stood.set()
                os.kill(os.getppid(), signal.SIGSTOP)  # its supervisor first, which would end it
                os.kill(os.getpid(), signal.SIGSTOP)

        execution.stage, execution.progress = entering, progress  # type: ignore[method-assign]
        REAL["onboard"](execution)

    return {"onboard": onboard}


def _dying_in_the_transaction(execution: Execution) -> None:
    """After every row was written, and before the commit."""
    finish: Callable[[Session, dict[str, Any]], None] = execution.finish

    def die(session: Session, result: dict[str, Any]) -> None:
        finish(session, result)
        session.flush()
        os.kill(os.getppid(), signal.SIGKILL)  # else its supervisor would say at once that it is dead
        os.kill(os.getpid(), signal.SIGKILL)

    execution.finish = die  # type: ignore[method-assign]
    REAL["onboard"](execution)


HARVEST = _standing_still("harvest", saved="*/*-00000.safetensors")
FIT = _standing_still("fit", 0.2, saved="*.fit")
REFIT = _standing_still("refit", 0.2, saved="*.fit")
EXTEND = _standing_still("extend")
MEASURE = _standing_still("measure")
JUDGE = _standing_still("judge")
WRITING: Pipelines = {"onboard": _dying_in_the_transaction}
