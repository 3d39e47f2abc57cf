"""Contrast sets: rows of two classes, as they come, and as the service keeps them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from featurewatch.service.kit.problems import UnprocessableError

LEAST_ROWS = 16
"""Of each class: eight choose the features, eight judge them."""
MOST_ROWS = 20_000
MOST_BYTES = 50_000_000
Text = Annotated[str, Field(min_length=1, max_length=100_000)]


class Labelled(BaseModel):
    """A row with its class."""

    model_config = ConfigDict(extra="ignore")

    text: Text
    label: bool
    answer: Text | None = Field(None, description="What follows the text: `position: answer` reads its first token.")
    group: str | int | None = Field(None, description="Rows that belong together are never split. Left out: alone.")


class Pair(BaseModel):
    """Two rows that differ in the concept: two texts, or, with a `text`, two answers to it."""

    model_config = ConfigDict(extra="ignore")

    positive: Text
    negative: Text
    text: Text | None = None


ContrastRow = Labelled | Pair
_ROW: TypeAdapter[ContrastRow] = TypeAdapter(ContrastRow)


class Kept(BaseModel):
    """A row as it is kept: a line of the artifact."""

    text: str
    answer: str | None
    label: bool
    group: int


def read_file(path: Path) -> list[ContrastRow]:
    """Rows of a JSONL file; UnprocessableError names the first line that is none."""
    if not path.is_file():
        raise UnprocessableError(f"There is no contrast set {path.name} at that place.", code="contrast-missing")
    if path.stat().st_size > MOST_BYTES:
        raise UnprocessableError(f"{path.name} is over {MOST_BYTES:,} bytes.", code="contrast-too-large")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UnprocessableError(f"{path.name} is no UTF-8 text: {error}", code="contrast-invalid") from error
    # Not splitlines(): a row may hold other line breaks, which JSON leaves as they are.
    return [parse(line, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def parse(line: str, number: int) -> ContrastRow:
    """One line; UnprocessableError says what it should look like."""
    try:
        return _ROW.validate_json(line)
    except ValidationError:
        raise UnprocessableError(
            f'Line {number} is no row of a contrast set. One looks like {{"text": "...", "label": 1}} or '
            '{"positive": "...", "negative": "..."}.',
            code="contrast-invalid",
        ) from None


def kept(rows: Sequence[ContrastRow]) -> list[Kept]:
    """Rows in the form that is kept. UnprocessableError where there are too few of a class, or too many."""
    found: list[Kept] = []
    groups: dict[str, int] = {}
    for number, row in enumerate(rows):
        if isinstance(row, Pair):
            group = groups.setdefault(f"pair {number}", len(groups))
            for label, text in ((True, row.positive), (False, row.negative)):
                found.append(Kept(text=row.text or text, answer=text if row.text else None, label=label, group=group))
        else:
            name = f"row {number}" if row.group is None else f"group {row.group}"
            group = groups.setdefault(name, len(groups))
            found.append(Kept(text=row.text, answer=row.answer, label=row.label, group=group))
    positive = sum(row.label for row in found)
    if min(positive, len(found) - positive) < LEAST_ROWS:
        raise UnprocessableError(
            f"The contrast set has {positive} positive and {len(found) - positive} negative rows; it needs "
            f"{LEAST_ROWS} of each: half of them choose the features, the others judge.",
            code="contrast-too-small",
        )
    if len(found) > MOST_ROWS:
        raise UnprocessableError(f"The contrast set has {len(found):,} rows; at most {MOST_ROWS:,}.",
                                 code="contrast-too-large")  # fmt: skip
    return found


def lines(rows: Iterable[Kept]) -> str:
    """The artifact's text."""
    return "".join(row.model_dump_json() + "\n" for row in rows)


def load(path: Path) -> list[Kept]:
    """Rows of an artifact."""
    return [Kept.model_validate_json(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
