"""What all commands share: the connection, tables and JSON, files, and exit codes."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from featurewatch.service import __version__
from featurewatch.service.client import Client
from featurewatch.service.config import ClientSettings
from featurewatch.service.runs.words import seen
from featurewatch.service.verdicts.statuses import Colour, Status

OK, FAILED, USAGE, UNAVAILABLE = 0, 1, 2, 3

_STYLES: dict[Colour, str] = {
    "green": "green", "amber": "yellow", "red": "red", "magenta": "magenta", "violet": "blue", "blue": "cyan",
    "teal": "bright_green", "grey": "dim",
}  # fmt: skip
STATUS_STYLES: dict[str, str] = {status: _STYLES[status.row.colour] for status in Status} | {
    "succeeded": "green",
    "judged": "green",
    "failed": "red",
    "open": "red",
}


class SafeConsole(Console):
    """A console on which no text acts on the terminal.

    Labels, names and errors come from the service and from models: an escape sequence in one of them could rewrite the
    screen, the window's title or the clipboard. Colours and the movements of the cursor are rich's own.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable, their control characters replaced."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=seen(segment.text))


# Colours and bars are for terminals, which rich finds out.
out = SafeConsole(highlight=False)
err = SafeConsole(stderr=True, highlight=False)

_GAP = 2
"""Blanks between columns."""
_LEAST_WIDTH, _LONGEST_WORD = 16, 20
"""To which a column is folded. A word that is longer than the second, such as a URI, is folded anywhere."""
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


Yes = Annotated[
    bool, typer.Option("--yes", "-y", help="Skip the confirmation prompt. Required when there is no terminal.")
]


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is deleted; exit code 1 for no. UsageError where nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} There is no terminal to ask at: add --yes to delete without asking.")
    if not typer.confirm(question, err=True):
        raise typer.Exit(complain("nothing was deleted", FAILED))


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
    console: Console | None = None,
) -> None:
    """Print an aligned table; `columns` are heading and function of the row. `empty` is said where there are none.

    On a terminal the columns that are named in `wraps` (else the last one) are folded, the first of them least, then
    those in `optional` are left out, in their order, which a note says. A table that is too wide even so is printed
    value by value: nothing is cut off.
    """
    to = console or out
    headings = [heading for heading, _ in columns]
    lines = [[_text(value(row)) for _, value in columns] for row in rows]
    if not lines:
        return say(empty)
    if not to.is_terminal:
        return _print_plain([headings, *([text.plain for text in line] for line in lines)], to)
    folded = [headings.index(heading) for heading in wraps or headings[-1:]]
    widths = _fit(headings, lines, folded, [headings.index(heading) for heading in optional], to.width)
    if widths is None:
        return _print_stacked(headings, lines, to)
    _print_table(headings, lines, widths, to)
    missing = [heading for place, heading in enumerate(headings) if place not in widths]
    if missing:
        note = f"Too narrow for {', '.join(missing)}: a wider terminal, a pipe or --json has all."
        (console or err).print(note, markup=False, soft_wrap=True)
    return None


def show_fields(pairs: Iterable[tuple[str, Any]]) -> None:
    """Print names and values, one pair a line; None is left out, and what is nested gets a line for each value."""
    fields = [(_one_line(name), value) for pair in pairs for name, value in _flat(*pair)]
    if not out.is_terminal:
        return _print_plain([[name, cell(value)] for name, value in fields], out)
    return _print_fields([(name, _text(value)) for name, value in fields], out)


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A value with its name; of a nested one each part, with a name such as `quality.fvu`."""
    parts: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        parts = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        parts = list(enumerate(value))
    if parts:
        for part, item in parts:
            yield from _flat(f"{name}.{part}", item)
    elif value is not None:
        yield name, value


def size(count: int) -> str:
    """Bytes for people."""
    value, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 1000 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"


def _print_plain(lines: list[list[str]], to: Console) -> None:
    """Aligned columns without colours, each row one line: for pipes and files."""
    widths = [max(cell_len(line[place]) for line in lines) for place in range(len(lines[0]))] if lines else []
    numbers = [_is_number([line[place] for line in lines[1:]]) for place in range(len(widths))]
    for line in lines:
        padded = []
        for text, width, number in zip(line, widths, numbers, strict=True):
            blank = " " * (width - cell_len(text))
            padded.append(blank + text if number else text + blank)
        typer.echo("  ".join(padded).rstrip(), file=to.file)


def _fit(
    headings: list[str], lines: list[list[Text]], folded: list[int], optional: list[int], total: int
) -> dict[int, int] | None:
    """Place -> width of the columns that a line of so many cells has room for; None where it has not, even without
    the optional ones and with the folded ones narrow."""
    columns = [[heading, *(line[place].plain for line in lines)] for place, heading in enumerate(headings)]
    whole = [max(map(cell_len, texts)) for texts in columns]
    words = [max((cell_len(word) for text in texts for word in text.split()), default=0) for texts in columns]
    widths = {
        place: min(width, max(_LEAST_WIDTH, min(words[place], _LONGEST_WORD))) if place in folded else width
        for place, width in enumerate(whole)
    }
    left = list(optional)
    while (spare := total + _GAP - sum(width + _GAP for width in widths.values())) < 0 and left:
        del widths[left.pop(0)]
    if spare < 0:
        return None
    for place in folded:
        if place in widths:
            more = min(spare, whole[place] - widths[place])
            widths[place], spare = widths[place] + more, spare - more
    return widths


def _print_table(headings: list[str], lines: list[list[Text]], widths: dict[int, int], to: Console) -> None:
    """Columns of these widths; what is longer is folded, between words where there are any."""
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for place, width in widths.items():
        number = _is_number([line[place].plain for line in lines])
        table.add_column(headings[place], overflow="fold", width=width, justify="right" if number else "left")
    for line in lines:
        table.add_row(*(line[place] for place in widths))
    to.print(table)


def _print_stacked(headings: list[str], lines: list[list[Text]], to: Console) -> None:
    """A line for each value, a blank one between rows: for what is too wide for a table."""
    for number, line in enumerate(lines):
        if number:
            to.print()
        _print_fields(list(zip(headings, line, strict=True)), to)


def _print_fields(fields: list[tuple[str, Text]], to: Console) -> None:
    """Names and values on a terminal, both folded where they are too long."""
    table = Table(box=None, pad_edge=False, show_edge=False, show_header=False)
    table.add_column(style="bold", overflow="fold")
    table.add_column(overflow="fold")
    for name, text in fields:
        table.add_row(Text(name), text)
    to.print(table)


def _is_number(column: list[str]) -> bool:
    return all(_NUMBER.fullmatch(text) for text in column) and any(text != "-" for text in column)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What writes the file or folder that somebody named; UsageError where that cannot be done."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise UsageError(
            f"{path} cannot be written: {why}; name a place where you may write, in a folder that is there"
        ) from error


def write(path: Path, text: str) -> None:
    """Write a file; UsageError where that cannot be done."""
    with writing(path):
        path.write_text(text, encoding="utf-8")


def _text(value: Any) -> Text:
    """A value as text of a table, in its colour."""
    if isinstance(value, Text):
        clean = value.copy()
        clean.plain = _one_line(clean.plain)  # as long as before, so that its colours stay in place
        return clean
    text = cell(value)
    return Text(text, style=STATUS_STYLES.get(text, ""))


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
        return (
            "; ".join(f"{_one_line(str(name))}={cell(item)}" for name, item in value.items() if item is not None) or "-"
        )
    text = _one_line(str(value))
    return f"{moment(text)} UTC" if _MOMENT.fullmatch(text) else text


def _one_line(text: str) -> str:
    """Text that can neither act on the terminal nor pass itself off as another row. As long as before."""
    return seen(re.sub(r"[\t\r\n]", " ", text))


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


def age(since: str, until: str | None = None) -> float:
    """Seconds from one time of the API to another, or to now."""
    end = datetime.fromisoformat(until) if until else datetime.now(UTC)
    return max((end - datetime.fromisoformat(since)).total_seconds(), 0.0)  # this machine's clock may be behind


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`, `3 d`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86_400 else f"{seconds / 86_400:.0f} d"
