"""Tiny pipelines that leave a trace, for workers in this process and in others."""

import re
import subprocess
import time
from pathlib import Path

from featurewatch.service.webhooks import logic as webhooks
from featurewatch.workers.errors import RunError
from featurewatch.workers.execution import Execution


def steps(execution: Execution) -> None:
    """Two stages of `steps` steps of `seconds` each. A step that an earlier attempt made is not made again."""
    folder = Path(execution.params["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    note(folder, f"attempt {execution.attempt}")
    for stage in ("harvest", "measure"):
        with execution.stage(stage):
            for step in range(execution.params["steps"]):
                execution.check()
                made = folder / f"{stage}-{step}"
                if not made.exists():
                    time.sleep(execution.params["seconds"])
                    made.touch()
                execution.progress((step + 1) / execution.params["steps"], step=step)
    with execution.write() as session:
        webhooks.emit(
            session,
            type="checkpoint.judged",
            family_id=execution.family_id,
            data={"run": execution.run_id, "attempt": execution.attempt},
            key=f"{execution.run_id}:{execution.attempt}",
        )
        execution.finish(session, {"attempt": execution.attempt})
    note(folder, f"finished {execution.attempt}")


def refuse(execution: Execution) -> None:
    """Bad input."""
    raise RunError("activations.wrong_width", "resid_post.3 is 64 wide, the family's 128")


def stumble(execution: Execution) -> None:
    """A bug."""
    with execution.stage("fit"):
        raise ZeroDivisionError("division by zero")


def stuck(execution: Execution) -> None:
    """Comes to no step any more: as a call into a library that hangs."""
    with execution.stage("fit"):
        time.sleep(3600)


def spin(execution: Execution) -> None:
    """Holds the GIL in C forever, so no other thread has a turn; beside it a process such as those of a fit."""
    folder = Path(execution.params["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    with execution.stage("fit"):
        beside = subprocess.Popen(["sleep", "3600"])
        note(folder, str(beside.pid))
        re.match(r"(a+)+$", "a" * 64 + "b")


def quiet(execution: Execution) -> None:
    """Ends without a word."""


def note(folder: Path, line: str) -> None:
    """Add a line to the journal of a run."""
    with (folder / "journal").open("a") as journal:
        journal.write(line + "\n")


def journal(folder: Path) -> list[str]:
    """The lines that attempts have written."""
    path = folder / "journal"
    return path.read_text().splitlines() if path.exists() else []


PIPELINES = {
    "steps": steps,
    "refuse": refuse,
    "stumble": stumble,
    "stuck": stuck,
    "spin": spin,
    "quiet": quiet,
    "label": quiet,
}
