"""Passages of the probe corpus, token by token, with a feature's activation on each."""

from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field

from featurewatch.service.features import codes
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.models import Code, Family

AROUND = 32
"""Tokens on each side of the one where the feature fires most."""


class Activation(BaseModel):
    """A passage, token by token, with the feature's activation on each."""

    tokens: list[str]
    values: list[float]
    max_value: float = Field(serialization_alias="maxValue")
    max_value_token_index: int = Field(serialization_alias="maxValueTokenIndex")
    min_value: float = Field(serialization_alias="minValue")


class Passages:
    """Passages around the examples of a code. Files are memory-mapped, so only what is used is read."""

    def __init__(self, artifacts: ArtifactStore, family: Family, code: Code) -> None:
        self.code = codes.tensors(artifacts, code.artifact)
        examples = codes.tensors(artifacts, code.examples)
        self.places, self.values = examples["positions"], examples["values"]
        positions = family.positions or {}
        self.documents: Path | None = None
        if positions.get("documents"):
            self.documents = artifacts.path(positions["documents"])
            tensors = codes.tensors(artifacts, positions["artifact"])
            self.document, self.start, self.end = (tensors[name] for name in ("document", "start", "end"))

    def column(self, number: int) -> int | None:
        """The column of a feature; None if the code does not contain it."""
        columns = np.flatnonzero(self.code["feature_numbers"] == number)
        return int(columns[0]) if len(columns) else None

    def largest(self, column: int) -> float:
        """The largest activation of a column."""
        return float(self.values[column].max(initial=0.0))

    def activations(self, column: int, limit: int) -> list[Activation]:
        """Passages around the positions where a column fires most, strongest first."""
        if self.documents is None:
            return []
        rows = [int(row) for row in self.places[column] if row >= 0][:limit]
        return [self._around(column, row, self.documents) for row in rows]

    def _around(self, column: int, row: int, documents: Path) -> Activation:
        first, last = max(0, row - AROUND), min(len(self.document), row + AROUND + 1)
        same = first + np.flatnonzero(self.document[first:last] == self.document[row])
        first, last = int(same[0]), int(same[-1]) + 1
        text = codes.document_text(documents, int(self.document[row])) or ""
        # Each token starts where the previous one ends, so that the tokens include all white space.
        begins = [int(self.start[first]), *self.end[first : last - 1].tolist()]
        tokens = [text[begin:end] for begin, end in zip(begins, self.end[first:last].tolist(), strict=True)]
        values = self._values(column, first, last)
        at = row - first
        return Activation(
            tokens=tokens, values=values, max_value=values[at], max_value_token_index=at, min_value=min(values)
        )

    def _values(self, column: int, first: int, last: int) -> list[float]:
        """Activations of a column at the positions [first, last)."""
        ends = self.code["indptr"][first : last + 1]
        part = slice(int(ends[0]), int(ends[-1]))
        latents, values = self.code["indices"][part], self.code["values"][part]
        row = np.repeat(np.arange(last - first), np.diff(ends))
        dense = np.zeros(last - first)
        dense[row[latents == column]] = values[latents == column]
        return [round(float(value), 4) for value in dense]
