"""What all commands share: the connection, tables and JSON, progress, and exit codes."""

import json
import re
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

_STEADY_SECONDS, _STEADY_SHARE = 3.0, 0.02
"""Of a stage, before its speed tells when it will be over."""
_LEAST_WIDTH = 16
"""To which a column of words may be folded."""
_NUMBER = re.compile(r"-|[-+]?[\d,.]+(e[-+]?\d+)?%?")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")

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


def show_rows(
    rows: Iterable[Any],
    columns: Sequence[tuple[str, Callable[[Any], Any]]],
    *,
    empty: str,
    wraps: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> None:
    """Print an aligned table; `columns` are heading and function of the row. `empty` is said where there are none.

    On a terminal the columns that are named in `wraps` (else the last one) give way first, then those in `optional`
    are left out, in their order.
    """
    headings = [heading for heading, _ in columns]
    cells = [[cell(value(row)) for _, value in columns] for row in rows]
    if not cells:
        return say(empty)
    if not out.is_terminal:
        return _print_plain([headings, *cells])
    give = [heading in (wraps or headings[-1:]) for heading in headings]
    widths = [max(cell_len(line[place]) for line in [headings, *cells]) for place in range(len(headings))]
    least = [min(width, _LEAST_WIDTH) if gives else width for width, gives in zip(widths, give, strict=True)]
    shown = list(range(len(headings)))
    for heading in optional:
        if sum(least[place] for place in shown) + 2 * (len(shown) - 1) <= out.width:
            break
        shown.remove(headings.index(heading))
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for place in shown:
        table.add_column(
            headings[place],
            overflow="fold",
            min_width=least[place],
            no_wrap=not give[place],
            justify="right" if _is_number([line[place] for line in cells]) else "left",
        )
    for line in cells:
        table.add_row(*(Text(line[place], style=STATUS_STYLES.get(line[place], "")) for place in shown))
    out.print(table)
    left = [heading for place, heading in enumerate(headings) if place not in shown]
    if left:
        say(f"Too narrow for {', '.join(left)}: a wider terminal, a pipe or --json has all.")
    return None


def show_fields(pairs: Iterable[tuple[str, Any]]) -> None:
    """Print names and values, one pair a line; None is left out."""
    lines = [[name, cell(value)] for name, value in pairs if value is not None]
    if not out.is_terminal:
        return _print_plain(lines)
    table = Table(box=None, pad_edge=False, show_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in lines:
        table.add_row(Text(name), Text(text, style=STATUS_STYLES.get(text, "")))
    return out.print(table)


def size(count: int) -> str:
    """Bytes for people."""
    value, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 1000 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"


def _print_plain(lines: list[list[str]]) -> None:
    """Aligned columns without colours, each row one line: for pipes and files."""
    widths = [max(cell_len(line[place]) for line in lines) for place in range(len(lines[0]))] if lines else []
    numbers = [_is_number([line[place] for line in lines[1:]]) for place in range(len(widths))]
    for line in lines:
        padded = []
        for text, width, number in zip(line, widths, numbers, strict=True):
            blank = " " * (width - cell_len(text))
            padded.append(blank + text if number else text + blank)
        typer.echo("  ".join(padded).rstrip())


def _is_number(column: list[str]) -> bool:
    return all(_NUMBER.fullmatch(text) for text in column) and any(text != "-" for text in column)


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
        return " ".join(f"{name}={cell(item)}" for name, item in value.items() if item is not None) or "-"
    text = str(value)
    return f"{moment(text)} UTC" if _MOMENT.fullmatch(text) else text


def ratio(value: float | None, interval: Sequence[float | None] | None) -> str:
    """A ratio with its interval, `0.51 (0.48 to 0.55)`."""
    if value is None:
        return "-"
    if not interval or None in interval:
        return _hundredths(value)
    return f"{_hundredths(value)} ({_hundredths(interval[0])} to {_hundredths(interval[1])})"


def _hundredths(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 2) + 0.0:.2f}"  # nothing is 0.00, not -0.00


def moment(text: str | None) -> str | None:
    """A time of the API to the second."""
    return text[:19].replace("T", " ") if text else None


def follow(client: Client, run: str, timeout: float | None) -> Run:
    """Wait for a run and show its progress on the error output: a bar on a terminal, else a line for each stage."""
    if not err.is_terminal:
        return client.wait(run, timeout=timeout, on_progress=_Lines())
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[rate]}"),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        return client.wait(run, timeout=timeout, on_progress=_Bars(bar), interval=0.5)


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def rate(run: Run) -> str:
    """What the stage does per second, e.g. `2,100 positions/s`."""
    speeds = {name: value for name, value in run["detail"].items() if name.endswith("_per_second")}
    return ", ".join(f"{float(v):,.0f} {name.removesuffix('_per_second')}/s" for name, v in speeds.items() if v)


class _Clock:
    """How long the stage that goes on will take yet, from how fast it went so far."""

    def __init__(self) -> None:
        self.stage, self.began, self.first = "", 0.0, 0.0

    def left(self, run: Run) -> str:
        """`about 40 s left`; empty while that cannot be said."""
        now, stage, done = time.monotonic(), run["stage"] or run["state"], run["progress"]
        if stage != self.stage:
            self.stage, self.began, self.first = stage, now, done
        passed, went = now - self.began, done - self.first
        if passed < _STEADY_SECONDS or went < _STEADY_SHARE or done >= 1:
            return ""
        return f"about {duration((1 - done) * passed / went)} left"


class _Bars:
    """A bar for each stage."""

    def __init__(self, bar: Progress) -> None:
        self.bar, self.stage, self.clock = bar, "", _Clock()
        self.task: TaskID = bar.add_task("queued", total=None, rate="", left="")

    def __call__(self, run: Run) -> None:
        stage = run["stage"] or run["state"]
        if stage != self.stage:
            if self.stage:
                total = 1.0 if self.stage not in ("queued", "running") else None
                self.bar.update(self.task, completed=total, total=total, visible=total is not None, left="")
                self.task = self.bar.add_task(stage, total=1.0, rate="", left="")
            self.stage = stage
        left, speed = self.clock.left(run), rate(run)
        self.bar.update(self.task, description=stage, total=1.0, completed=run["progress"], rate=speed, left=left)


class _Lines:
    """A line for each stage, and every half minute."""

    def __init__(self) -> None:
        self.stage, self.said, self.clock = "", 0.0, _Clock()

    def __call__(self, run: Run) -> None:
        stage, left = run["stage"] or run["state"], self.clock.left(run)
        now = time.monotonic()
        if stage == self.stage and now - self.said < 30:
            return
        self.stage, self.said = stage, now
        now_at = f"{run['state']}: {stage} {run['progress']:.0%}" if run["stage"] else run["state"]
        say("  ".join(filter(None, [now_at, rate(run), left])))
