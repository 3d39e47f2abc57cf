"""What all commands share: the connection, tables and JSON, progress, and exit codes."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from service import __version__
from service.client import Client
from service.client.types import Run
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

# Colours and bars are for terminals, which rich finds out.
out = Console(highlight=False)
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


def _print_version(on: bool) -> None:
    if on:
        typer.echo(f"featurewatch {__version__}")
        raise typer.Exit


def options(
    url: Annotated[str | None, typer.Option(help="Where the service is. (FEATUREWATCH_URL)")] = None,
    key: Annotated[str | None, typer.Option(help="API key. Better in the environment. (FEATUREWATCH_KEY)")] = None,
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Options before the command."""
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


def say(text: str) -> None:
    """A line for people, on the error output."""
    err.print(text, markup=False, soft_wrap=True)


def complain(text: str, code: int) -> int:
    """Say what went wrong, on the error output; returns the exit code."""
    err.print("[bold red]error:[/] ", end="")
    say(text)
    return code


def show_json(value: Any) -> None:
    """Print a value as JSON; iterators as lists."""
    typer.echo(
        json.dumps(list(value) if isinstance(value, Iterable) and not isinstance(value, dict) else value, indent=2)
    )


def show_rows(rows: Iterable[Any], columns: Sequence[tuple[str, Callable[[Any], Any]]], *, empty: str) -> None:
    """Print an aligned table; `columns` are heading and function of the row. `empty` is said where there are none."""
    cells = [[cell(value(row)) for _, value in columns] for row in rows]
    if cells:
        _print_grid([heading for heading, _ in columns], cells)
    else:
        say(empty)


def show_fields(pairs: Iterable[tuple[str, Any]]) -> None:
    """Print names and values, one pair a line; None is left out."""
    _print_grid(None, [[name, cell(value)] for name, value in pairs if value is not None])


def size(count: int) -> str:
    """Bytes for people."""
    value, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 1000 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"


def _print_grid(headings: list[str] | None, cells: list[list[str]]) -> None:
    """Aligned columns: with colours and folded to the width on a terminal, whole lines elsewhere."""
    if not out.is_terminal:
        lines = [*([headings] if headings else []), *cells]
        widths = [max(cell_len(line[i]) for line in lines) for i in range(len(lines[0]))] if lines else []
        for line in lines:
            padded = (text + " " * (width - cell_len(text)) for text, width in zip(line, widths, strict=True))
            typer.echo("  ".join(padded).rstrip())
        return
    table = Table(box=None, pad_edge=False, show_edge=False, show_header=headings is not None, header_style="bold")
    for number, heading in enumerate(headings or ["", ""]):
        table.add_column(heading, overflow="fold", style=None if headings or number else "bold")
    for line in cells:
        table.add_row(*(Text(text, style=STATUS_STYLES.get(text, "")) for text in line))
    out.print(table)


def write(path: Path, text: str) -> None:
    """Write a file; UsageError where that cannot be done."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}") from error


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
    return str(value)


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
        say(f"{run['state']}: {stage} {run['progress']:.0%} {rate(run)}".rstrip())
