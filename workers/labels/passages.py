"""Passages of the probe corpus for a feature: where it fires and where it does not.

A passage is a token with the text around it. A label is scored on documents that it was not written from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from featurewatch.service.features.schemas import Example
from featurewatch.service.features.words import passage

SHOWN, HELD_OUT = 8, 10
"""Passages that a label is written from, and passages of each kind that it is scored on."""
LETTERS = 120
"""Characters on each side of the token."""
_DRAWS = 40


@dataclass(frozen=True)
class Drawn:
    """Passages of one feature."""

    shown: list[tuple[str, str, str]]
    """(before, token, after), strongest first"""
    held: list[str]
    """Passages where the feature fires and others, shuffled"""
    fires: list[bool]


class Corpus:
    """The probe corpus with a family's code on it.

    code: CSR [positions, features]; document, start, end: int64 [positions]; texts: document -> text.
    """

    def __init__(
        self,
        code: sparse.csr_array,
        document: np.ndarray,
        start: np.ndarray,
        end: np.ndarray,
        texts: Mapping[int, str],
    ) -> None:
        self.columns = code.tocsc()
        self.read = np.flatnonzero(np.diff(code.indptr))
        """Positions with a code; others may be masked"""
        self.document, self.start, self.end, self.texts = document, start, end, texts

    def draw(self, column: int, seed: Sequence[int]) -> Drawn:
        """Passages of a column's feature, deterministic in the seed; empty if it never fires."""
        random = np.random.default_rng(seed)
        part = slice(self.columns.indptr[column], self.columns.indptr[column + 1])
        rows = self.columns.indices[part][np.argsort(-self.columns.data[part], kind="stable")]
        _, first = np.unique(self.document[rows], return_index=True)
        best = rows[np.sort(first)]  # the strongest position of each document, strongest first
        count = min(SHOWN, max(1, len(best) // 2))
        shown, others = best[:count], best[count:]
        scored = random.permutation(others)[:HELD_OUT]
        firing = [random.choice(rows[self.document[rows] == self.document[row]]) for row in scored]
        quiet = self._quiet(random, rows, self.document[shown]) if firing else []
        held_out = [(self._text(row), True) for row in firing] + [(self._text(row), False) for row in quiet]
        mixed = [held_out[index] for index in random.permutation(len(held_out))]
        return Drawn([self.passage(row) for row in shown], [text for text, _ in mixed], [fires for _, fires in mixed])

    def passage(self, row: int) -> tuple[str, str, str]:
        """A position as (before, token, after), on one line."""
        text = self.texts[int(self.document[row])]
        start, end = int(self.start[row]), int(self.end[row])
        around = (text[max(0, start - LETTERS) : start], text[start:end], text[end : end + LETTERS])
        example = Example(
            document=0, position=0, text_before=around[0], token=around[1], text_after=around[2], activation=0.0
        )
        parts = passage(example, LETTERS)
        assert parts is not None
        return parts

    def _text(self, row: int) -> str:
        return "".join(self.passage(row))

    def _quiet(self, random: np.random.Generator, firing: np.ndarray, without: np.ndarray) -> list[int]:
        """Up to HELD_OUT positions in whose passages the feature does not fire, outside the documents `without`."""
        quiet: list[int] = []
        for row in random.choice(self.read, HELD_OUT * _DRAWS):
            document = self.document[row]
            near = firing[self.document[firing] == document]
            apart = (self.end[near] <= self.start[row] - LETTERS) | (self.start[near] >= self.end[row] + LETTERS)
            if document not in without and bool(apart.all()) and row not in quiet:
                quiet.append(int(row))
            if len(quiet) == HELD_OUT:
                break
        return quiet
