"""`featurewatch run`."""

import json
import time
from typing import Annotated, Any

import typer
from rich.text import Text

from featurewatch.service.cli import base, complete, progress
from featurewatch.service.cli.arguments import OfFamily, RunId, Timeout
from featurewatch.service.cli.base import AsJson
from featurewatch.service.cli.command import Table, calls, command, deletes, fields
from featurewatch.service.client import Client, types
from featurewatch.service.runs.schemas import Level, LogLineView
from featurewatch.service.runs.states import FINAL, RunState
from featurewatch.service.runs.words import as_text

app = typer.Typer(name="run", help="Runs: the jobs of the workers.", no_args_is_help=True)

POLL_SECONDS = 1.0
_LEVEL_STYLES = {"warning": "yellow", "error": "red"}


RUNS = Table(
    ("id", "family", "checkpoint", "kind", "state", "stage", "progress", "attempt", "elapsed", "age"),
    {
        "progress": lambda row: f"{row['progress']:.0%}",
        "elapsed": lambda row: row["started_at"] and base.duration(base.age(row["started_at"], row["finished_at"])),
        "age": lambda row: base.duration(base.age(row["created_at"])),
    },
    empty="No runs.",
    optional=("attempt", "stage", "progress", "elapsed", "family"),
)
ATTEMPTS = Table(
    ("attempt", "outcome", "why", "device", "cpu_seconds", "peak_memory", "worker"),
    {
        "attempt": "number",
        "outcome": lambda attempt: attempt["outcome"] or "running",
        "why": lambda attempt: attempt["error"] and attempt["error"]["detail"],
        "device": lambda attempt: attempt["usage"].get("device"),
        "cpu_seconds": lambda attempt: attempt["usage"].get("cpu_seconds"),
        "peak_memory": lambda attempt: (peak := attempt["usage"].get("peak_memory_bytes")) and base.size(peak),
    },
    empty="No worker has started it yet.",
    wraps=("why",),
    optional=("worker", "device"),
)
State = Annotated[str | None, typer.Option(help="Show only this state.", autocompletion=complete.words(*RunState))]

calls(app, "list", Client.runs, RUNS, family=OfFamily, state=State)
calls(app, "cancel", Client.cancel, fields("state"), run=RunId)
calls(app, "retry", Client.retry, fields("state"), run=RunId)
deletes(app, Client.delete_run, "Delete the run {run} with its log?", run=RunId)


def _show_run(row: dict[str, Any]) -> None:
    base.show_fields((name, value) for name, value in row.items() if name not in ("usage", "attempts"))
    ATTEMPTS(row["attempts"])


@command(app, "show", _show_run)
def show_run(client: Client, run: RunId) -> dict[str, Any]:
    """Show a run, and each attempt at it with the resources it used."""
    return {**client.run(run), "attempts": list(client.attempts(run))}


@app.command("log")
def show_log(
    run: RunId,
    attempt: Annotated[int | None, typer.Option(help="Show only this attempt.", min=1)] = None,
    level: Annotated[Level, typer.Option(help="Show only lines of this level or above.")] = Level.INFO,
    follow: Annotated[bool, typer.Option("--follow", help="Keep printing new lines until the run ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what the workers logged about a run, oldest first. With --follow, --json prints one object per line."""
    last = 0
    with base.connect() as client:
        if as_json and not follow:
            return base.show_json(client.log(run, attempt=attempt, level=level))
        ended = False
        while not ended:
            ended = not follow or client.run(run)["state"] in FINAL  # asked first: its last lines come after
            for line in client.log(run, attempt=attempt, level=level, after=last):
                last = line["number"]
                typer.echo(json.dumps(line)) if as_json else _show_line(line)
            if not ended:
                time.sleep(POLL_SECONDS)
    return None if last else base.say("No log lines. They appear once a worker has started the run.")


def _show_line(line: types.LogLine) -> None:
    text = as_text(LogLineView.model_validate(line))
    base.out.print(Text(text, style=_LEVEL_STYLES.get(line["level"], "")), soft_wrap=True)


@command(app, "wait", fields("state", "seconds"), then=progress.exit_unless_succeeded)
def wait_for_run(client: Client, run: RunId, timeout: Timeout = None) -> types.Run:
    """Wait until a run has ended; exit code 1 unless it succeeded."""
    return progress.follow(client, run, timeout)
