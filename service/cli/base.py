"""What all commands share: the connection, output as tables or JSON, files, and exit codes."""

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
from featurewatch.service.verdicts.statuses import WORDS, Colour

OK, FAILED, USAGE, UNAVAILABLE = 0, 1, 2, 3

_STYLES: dict[Colour, str] = {
    "green": "green", "amber": "yellow", "red": "red", "magenta": "magenta", "violet": "blue", "blue": "cyan",
    "teal": "bright_green", "grey": "dim",
}  # fmt: skip
STATUS_STYLES: dict[str, str] = {word: _STYLES[row.colour] for word, row in WORDS.items()} | {
    "succeeded": "green",
    "judged": "green",
    "failed": "red",
    "open": "red",
}


class SafeConsole(Console):
    """A console that prints no control characters but rich's own.

    Labels, names and errors come from the service and from models. An escape sequence in one of them could rewrite the
    screen, the window title or the clipboard.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable, with the control characters in their text replaced."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=seen(segment.text))


# rich prints colours and bars to terminals only.
out = SafeConsole(highlight=False)
err = SafeConsole(stderr=True, highlight=False)

_GAP = 2
"""Spaces between columns."""
_FOLDED_WIDTH = 16
"""Minimum width of a folded column: words of up to 15 characters stay whole, longer ones such as URIs are split."""
_NUMBER = re.compile(r"-|[-+]?[\d,.]+(e[-+]?\d+)?%?")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")

AsJson = Annotated[bool, typer.Option("--json", help="Print the JSON of the API.")]


class UsageError(Exception):
    """Wrong usage of a command; the message says what to do."""


@dataclass
class Target:
    """The service to talk to. `named`: whether the user named it, or it is the default."""

    url: str
    key: str
    named: bool


target = Target("", "", False)


def _print_version(on: bool) -> None:
    if on:
        typer.echo(f"featurewatch {__version__}")
        raise typer.Exit


def options(
    url: Annotated[str | None, typer.Option(help="URL of the service. (FEATUREWATCH_URL)")] = None,
    key: Annotated[
        str | None, typer.Option(help="API key. Prefer the environment variable. (FEATUREWATCH_KEY)")
    ] = None,
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Read the options that come before the command."""
    settings = ClientSettings()
    target.url = url or settings.url
    target.key = key or settings.key.get_secret_value()
    target.named = url is not None or "url" in settings.model_fields_set


def connect() -> Client:
    """A client of the service to talk to."""
    return Client(target.url, target.key, retries=3)


def say(text: str) -> None:
    """Print a line for people, to stderr."""
    err.print(text, markup=False, soft_wrap=True)


def complain(text: str, code: int) -> int:
    """Print an error to stderr and return the exit code."""
    err.print("[bold red]error:[/] ", end="")
    say(text)
    return code


Yes = Annotated[
    bool, typer.Option("--yes", "-y", help="Skip the confirmation prompt. Required when there is no terminal.")
]


def confirm(question: str, *, yes: bool) -> None:
    """Ask before deleting; exit code 1 if the answer is no. UsageError if there is no terminal to ask on."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} There is no terminal to ask on; add --yes to delete without asking.")
    if not typer.confirm(question, err=True):
        raise typer.Exit(complain("Nothing was deleted.", FAILED))


def show_json(value: Any) -> None:
    """Print a value as JSON; an iterator becomes a list."""
    typer.echo(
        json.dumps(list(value) if isinstance(value, Iterable) and not isinstance(value, dict) else value, indent=2)
    )


def show_rows(
    rows: Iterable[Any],
    columns: Iterable[tuple[str, str | Callable[[Any], Any]]],
    *,
    empty: str,
    wraps: Sequence[str] = (),
    optional: Sequence[str] = (),
    console: Console | None = None,
) -> None:
    """Print an aligned table, or the sentence `empty` if there are no rows.

    columns: headings, each with a key of the row or a function of it. On a terminal that is too narrow for all of them,
    those in `wraps` (by default the last one) are folded, then those in `optional` are left out, in order, and a note
    names them. A table that still does not fit is printed one value per line: nothing is cut off.
    """
    to = console or out
    headings, values = zip(*columns, strict=True)
    lines = [[_text(value_of(row, value)) for value in values] for row in rows]
    if not lines:
        return say(empty)
    if not to.is_terminal:
        return _print_plain([list(headings), *([text.plain for text in line] for line in lines)], to)
    folded = [headings.index(heading) for heading in wraps or headings[-1:]]
    places = _fit(headings, lines, folded, [headings.index(heading) for heading in optional], to.width)
    if not places:
        return _print_stacked(headings, lines, to)
    _print_table(headings, lines, folded, places, to)
    missing = [heading for place, heading in enumerate(headings) if place not in places]
    if missing:
        note = f"Too narrow for {', '.join(missing)}: use a wider terminal, a pipe or --json to see all columns."
        (console or err).print(note, markup=False, soft_wrap=True)
    return None


def value_of(row: Any, value: str | Callable[[Any], Any]) -> Any:
    """The value of a column in a row."""
    return row[value] if isinstance(value, str) else value(row)


def show_fields(pairs: Iterable[tuple[str, Any]]) -> None:
    """Print names and values, one pair per line. None is omitted; a nested value gets one line for each part."""
    fields = [(_one_line(name), value) for pair in pairs for name, value in _flat(*pair)]
    if not out.is_terminal:
        return _print_plain([[name, cell(value)] for name, value in fields], out)
    return _print_fields([(name, _text(value)) for name, value in fields], out)


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A value with its name, or the parts of a nested value with names such as `quality.fvu`."""
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
    """A number of bytes for people: `1.5 GB`."""
    value, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 1000 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"


def _print_plain(lines: list[list[str]], to: Console) -> None:
    """Aligned columns without colours, one line per row: for pipes and files.

    Own code, since a rich table takes 70 times as long: 13 s for the 32,768 features of a family.
    """
    widths = [max(cell_len(line[place]) for line in lines) for place in range(len(lines[0]))] if lines else []
    numbers = [_is_number([line[place] for line in lines[1:]]) for place in range(len(widths))]
    for line in lines:
        padded = []
        for text, width, number in zip(line, widths, numbers, strict=True):
            blank = " " * (width - cell_len(text))
            padded.append(blank + text if number else text + blank)
        typer.echo("  ".join(padded).rstrip(), file=to.file)


def _fit(
    headings: Sequence[str], lines: list[list[Text]], folded: list[int], optional: list[int], total: int
) -> list[int]:
    """The columns that fit into `total` cells: all but the first few optional ones. Empty if even those do not fit."""
    widths = [
        max(cell_len(text) for text in (heading, *(line[place].plain for line in lines)))
        for place, heading in enumerate(headings)
    ]
    needed = [min(width, _FOLDED_WIDTH) if place in folded else width for place, width in enumerate(widths)]
    for omitted in range(len(optional) + 1):
        places = [place for place in range(len(headings)) if place not in optional[:omitted]]
        if sum(needed[place] + _GAP for place in places) - _GAP <= total:
            return places
    return []


def _print_table(
    headings: Sequence[str], lines: list[list[Text]], folded: list[int], places: list[int], to: Console
) -> None:
    """The columns `places`. Only `folded` ones become narrower than their text: between words where possible."""
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for place in places:
        number = _is_number([line[place].plain for line in lines])
        table.add_column(
            headings[place], overflow="fold", no_wrap=place not in folded, justify="right" if number else "left"
        )
    for line in lines:
        table.add_row(*(line[place] for place in places))
    to.print(table)


def _print_stacked(headings: Sequence[str], lines: list[list[Text]], to: Console) -> None:
    """One line per value and a blank line between rows, for rows that are too wide for a table."""
    for number, line in enumerate(lines):
        if number:
            to.print()
        _print_fields(list(zip(headings, line, strict=True)), to)


def _print_fields(fields: list[tuple[str, Text]], to: Console) -> None:
    """Names and values on a terminal, both folded if they are too long."""
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
    """Context for writing a file or folder that the user named; an OSError becomes a UsageError."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise UsageError(f"cannot write {path}: {why}; choose a writable path in an existing folder") from error


def _text(value: Any) -> Text:
    """A value as coloured text of a table."""
    if isinstance(value, Text):
        clean = value.copy()
        clean.plain = _one_line(clean.plain)  # of the same length: its styles stay in place
        return clean
    text = cell(value)
    return Text(text, style=STATUS_STYLES.get(text, ""))


def cell(value: Any) -> str:
    """A value as plain text of a table."""
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
    """Text of the same length without control characters and line breaks: it cannot pose as another row."""
    return seen(re.sub(r"[\t\r\n]", " ", text))


def ratio(value: float | None, interval: Sequence[float | None] | None) -> str:
    """A ratio with its interval, `0.51 (0.48 to 0.55)`."""
    if value is None:
        return "-"
    if not interval or None in interval:
        return _hundredths(value)
    return f"{_hundredths(value)} ({_hundredths(interval[0])} to {_hundredths(interval[1])})"


def _hundredths(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 2) + 0.0:.2f}"  # never -0.00


def moment(text: str | None) -> str | None:
    """A timestamp of the API, to the second."""
    return text[:19].replace("T", " ") if text else None


def age(since: str, until: str | None = None) -> float:
    """Seconds from one timestamp of the API to another, or to now."""
    end = datetime.fromisoformat(until) if until else datetime.now(UTC)
    return max((end - datetime.fromisoformat(since)).total_seconds(), 0.0)  # this machine's clock may be behind


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`, `3 d`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86_400 else f"{seconds / 86_400:.0f} d"
