"""Contrast sets: rows of two classes, as submitted and as stored."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from featurewatch.service.kit.problems import UnprocessableError

MIN_ROWS = 16
"""Rows per class: eight to choose the features and eight to judge them."""
MAX_ROWS = 20_000
MAX_BYTES = 50_000_000
Text = Annotated[str, Field(min_length=1, max_length=100_000)]


class Labelled(BaseModel):
    """A text with its class."""

    model_config = ConfigDict(extra="ignore")

    text: Text
    label: bool
    answer: Text | None = Field(None, description="The text that follows. `position: answer` reads its first token.")
    group: str | int | None = Field(
        None, description="Rows of one group are never split. Default: each row is its own group."
    )


class Pair(BaseModel):
    """Two texts that differ in the concept, or two answers to the same `text`."""

    model_config = ConfigDict(extra="ignore")

    positive: Text
    negative: Text
    text: Text | None = None


ContrastRow = Labelled | Pair
_ROW: TypeAdapter[ContrastRow] = TypeAdapter(ContrastRow)


class StoredRow(BaseModel):
    """A row as stored: one line of the artifact."""

    text: str
    answer: str | None
    label: bool
    group: int


def read_file(path: Path) -> list[ContrastRow]:
    """Read the rows of a JSONL file. UnprocessableError names the first invalid line."""
    if not path.is_file():
        raise UnprocessableError(f"The contrast set {path.name} does not exist.", code="contrast-missing")
    if path.stat().st_size > MAX_BYTES:
        raise UnprocessableError(f"{path.name} is larger than {MAX_BYTES:,} bytes.", code="contrast-too-large")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UnprocessableError(f"{path.name} is not valid UTF-8: {error}", code="contrast-invalid") from error
    # Not splitlines(): JSON strings may contain other line breaks.
    return [parse(line, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def parse(line: str, number: int) -> ContrastRow:
    """Parse one line. UnprocessableError shows the expected format."""
    try:
        return _ROW.validate_json(line)
    except ValidationError:
        raise UnprocessableError(
            f'Line {number} is not a valid row. Write {{"text": "...", "label": 1}} or '
            '{"positive": "...", "negative": "..."}.',
            code="contrast-invalid",
        ) from None


def stored(rows: Sequence[ContrastRow]) -> list[StoredRow]:
    """Rows in the form in which they are stored. UnprocessableError if there are too few of a class, or too many."""
    result: list[StoredRow] = []
    groups: dict[str, int] = {}
    for number, row in enumerate(rows):
        if isinstance(row, Pair):
            group = groups.setdefault(f"pair {number}", len(groups))
            for label, text in ((True, row.positive), (False, row.negative)):
                answer = text if row.text else None
                result.append(StoredRow(text=row.text or text, answer=answer, label=label, group=group))
        else:
            name = f"row {number}" if row.group is None else f"group {row.group}"
            group = groups.setdefault(name, len(groups))
            result.append(StoredRow(text=row.text, answer=row.answer, label=row.label, group=group))
    positive = sum(row.label for row in result)
    if min(positive, len(result) - positive) < MIN_ROWS:
        raise UnprocessableError(
            f"The contrast set has {positive} positive and {len(result) - positive} negative rows; it needs at least "
            f"{MIN_ROWS} of each.",
            code="contrast-too-small",
        )
    if len(result) > MAX_ROWS:
        raise UnprocessableError(
            f"The contrast set has {len(result):,} rows; the limit is {MAX_ROWS:,}.", code="contrast-too-large"
        )
    return result


def lines(rows: Iterable[StoredRow]) -> str:
    """The artifact's text."""
    return "".join(row.model_dump_json() + "\n" for row in rows)


def load(path: Path) -> list[StoredRow]:
    """Read the rows of an artifact."""
    return [StoredRow.model_validate_json(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
