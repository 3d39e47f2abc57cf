"""What all commands share: the connection, tables and JSON, progress, and exit codes."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from service import __version__
from service.client import Client
from service.client_types import Run
from service.config import ClientSettings

OK, FAILED, USAGE, UNAVAILABLE = 0, 1, 2, 3

STATUS_STYLES = {
    "present": "green",
    "suppressed": "yellow",
    "absent": "red",
    "replaced": "magenta",
    "relocated": "blue",
    "amplified": "cyan",
    "emerged": "bright_green",
    "indeterminate": "dim",
    "succeeded": "green",
    "judged": "green",
    "failed": "red",
    "open": "red",
}

# A pipe has no width: rows stay whole there. Colours and bars are for terminals, which rich finds out.
out = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=2000)
err = Console(stderr=True, highlight=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, as the API gave it.")]


class UsageError(Exception):
    """A command that cannot be carried out as it was given; the message says what to do."""


@dataclass
class Target:
    """Where the service is. `named` tells whether that was said, or is the default."""

    url: str
    key: str
    named: bool


_target = Target("", "", False)


def options(
    url: Annotated[str | None, typer.Option(help="Where the service is. (FEATUREWATCH_URL)")] = None,
    key: Annotated[str | None, typer.Option(help="API key. Better in the environment. (FEATUREWATCH_KEY)")] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Options before the command."""
    if version:
        typer.echo(f"featurewatch {__version__}")
        raise typer.Exit
    settings = ClientSettings()
    _target.url = url or settings.url
    _target.key = key or settings.key.get_secret_value()
    _target.named = url is not None or "url" in settings.model_fields_set


def target() -> Target:
    """The service that the command is about."""
    return _target


def connect() -> Client:
    """A client of the service that the command is about."""
    return Client(_target.url, _target.key, retries=3)


def complain(text: str, code: int) -> int:
    """Say what went wrong, on the error output; returns the exit code."""
    err.print("[bold red]error:[/] ", end="")
    err.print(text, markup=False, soft_wrap=True)
    return code


def show_json(value: Any) -> None:
    """Print a value as JSON; iterators as lists."""
    typer.echo(
        json.dumps(list(value) if isinstance(value, Iterable) and not isinstance(value, dict) else value, indent=2)
    )


def show_rows(rows: Iterable[Any], columns: Sequence[tuple[str, Callable[[Any], Any]]], *, empty: str) -> None:
    """Print an aligned table; `columns` are heading and function of the row. `empty` is said where there are none."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for heading, _ in columns:
        table.add_column(heading, no_wrap=not out.is_terminal, overflow="fold")
    count = 0
    for row in rows:
        count += 1
        table.add_row(*(cell(value(row)) for _, value in columns))
    if count:
        out.print(table)
    else:
        err.print(empty, markup=False)


def show_fields(pairs: Iterable[tuple[str, Any]]) -> None:
    """Print names and values, one pair a line; None is left out."""
    table = Table.grid(padding=(0, 2))
    for name, value in pairs:
        if value is not None:
            table.add_row(f"[bold]{name}[/]", cell(value))
    out.print(table)


def cell(value: Any) -> str:
    """A value as text of a table."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return ", ".join(map(cell, value)) or "-"
    if isinstance(value, dict):
        return " ".join(f"{name}={cell(item)}" for name, item in value.items()) or "-"
    text = str(value).replace("[", r"\[")
    return f"[{STATUS_STYLES[text]}]{text}[/]" if text in STATUS_STYLES else text


def ratio(value: float | None, interval: Sequence[float | None] | None) -> str:
    """A ratio with its interval, `0.51 (0.48 to 0.55)`."""
    if value is None:
        return "-"
    if not interval or None in interval:
        return f"{value:.2f}"
    return f"{value:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"


def moment(text: str | None) -> str | None:
    """A time of the API to the second."""
    return text[:19].replace("T", " ") if text else None


def follow(client: Client, run: str, timeout: float | None) -> Run:
    """Wait for a run and show its progress on the error output: a bar on a terminal, else a line for each stage."""
    if not err.is_terminal:
        return client.wait(run, timeout=timeout, on_progress=_Lines())
    columns = (TextColumn("{task.description:<10}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[rate]}"), console=err, transient=True) as bar:
        return client.wait(run, timeout=timeout, on_progress=_Bars(bar), interval=0.5)


def rate(run: Run) -> str:
    """What the stage does per second, e.g. `2,100 positions/s`."""
    speeds = {name: value for name, value in run["detail"].items() if name.endswith("_per_second")}
    return ", ".join(f"{float(v):,.0f} {name.removesuffix('_per_second')}/s" for name, v in speeds.items() if v)


class _Bars:
    """A bar for each stage."""

    def __init__(self, bar: Progress) -> None:
        self.bar, self.stage = bar, ""
        self.task: TaskID = bar.add_task("queued", total=None, rate="")

    def __call__(self, run: Run) -> None:
        stage = run["stage"] or run["state"]
        if stage != self.stage:
            if self.stage:
                total = 1.0 if self.stage not in ("queued", "running") else None
                self.bar.update(self.task, completed=total, total=total, visible=total is not None)
                self.task = self.bar.add_task(stage, total=1.0, rate="")
            self.stage = stage
        self.bar.update(self.task, description=stage, total=1.0, completed=run["progress"], rate=rate(run))


class _Lines:
    """A line for each stage, and every half minute."""

    def __init__(self) -> None:
        self.stage, self.said = "", 0.0

    def __call__(self, run: Run) -> None:
        stage = run["stage"] or run["state"]
        now = time.monotonic()
        if stage == self.stage and now - self.said < 30:
            return
        self.stage, self.said = stage, now
        err.print(f"{run['state']}: {stage} {run['progress']:.0%} {rate(run)}".rstrip(), markup=False)
