"""Where features are active in two checkpoints: what was gained, lost and kept, from their own codes.

With activations f_b at the baseline and f_c in the checkpoint, over positions that are valid in both,

    gained = sum of f_c where f_b = 0
    lost = sum of f_b where f_c = 0
    kept amplitude = sum of f_c / sum of f_b where both are active

An activation is either 0 or at least the threshold of the generation. A feature that is written at 1.5 times its
strength crosses the threshold at further positions although it is active in the same places. So an activation counts
as gained only if it would have been visible at the baseline's strength (f_c >= threshold x kept amplitude), and as lost
only if it would still be visible at the checkpoint's.

Pure numpy and scipy, shared by the workers and the API.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Floats = NDArray[np.float64]
Csr = Any
"""`scipy.sparse.csr_matrix`, which has no types."""

DOCUMENTS_SHARE = 0.9
"""`gained_documents` counts the documents that hold this share of the gained activation."""
LEAST_KEPT = 10
"""A kept amplitude needs this many positions; with fewer, the strength counts as unchanged."""


@dataclass(frozen=True)
class OwnCode:
    """Where features are active in one checkpoint, at n positions."""

    matrix: Csr
    """float32 [n, m] activations along unit rows"""
    valid: NDArray[np.bool_]
    """[n] positions where the checkpoint has activations"""
    document: NDArray[np.int64]
    """[n] document of each position, numbered from 0"""
    fold: NDArray[np.int64]
    """[n] fold of each position's document"""
    threshold: float
    """Smallest possible activation"""
    numbers: NDArray[np.int64]
    """[m] feature numbers"""

    def save(self, path: Path) -> None:
        """Write it as safetensors. Values are float16, 0.05% off at most."""
        tensors = {
            "indptr": self.matrix.indptr.astype(np.int64),
            "indices": self.matrix.indices.astype(np.int32),
            "values": self.matrix.data.astype(np.float16),
            "feature_numbers": self.numbers,
            "valid": self.valid,
            "document": self.document.astype(np.int32),
            "fold": self.fold.astype(np.uint8),
            "threshold": np.array([self.threshold]),
        }
        save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, path)

    @classmethod
    def load(cls, path: Path) -> "OwnCode":
        """Read what `save` wrote."""
        t = load_file(path)
        shape = (len(t["valid"]), len(t["feature_numbers"]))
        matrix = scipy.sparse.csr_matrix((t["values"].astype(np.float32), t["indices"], t["indptr"]), shape=shape)
        return cls(
            matrix=matrix,
            valid=t["valid"],
            document=t["document"].astype(np.int64),
            fold=t["fold"].astype(np.int64),
            threshold=float(t["threshold"][0]),
            numbers=t["feature_numbers"],
        )

    def columns(self, numbers: NDArray[np.int64]) -> "OwnCode":
        """The columns of some of its features, in the given order. KeyError for a feature that it lacks."""
        missing = np.setdiff1d(numbers, self.numbers)
        if len(missing):
            raise KeyError(f"the own code has no column for feature {missing[0]}")
        order = np.argsort(self.numbers)
        at = order[np.searchsorted(self.numbers, numbers, sorter=order)]
        return replace(self, matrix=self.matrix[:, at], numbers=numbers)


class PerFold(NamedTuple):
    """Sums over the positions of each fold, [K, m]."""

    before: Floats
    """of f_b"""
    now: Floats
    """of f_c"""
    gained: Floats
    lost: Floats
    kept_before: Floats
    """of f_b where both are active"""
    kept_now: Floats
    """of f_c there"""
    firings_before: Floats
    """positions with f_b > 0"""
    firings: Floats
    """positions with f_c > 0"""


class Gains(NamedTuple):
    """How gained activation spreads over documents, [m]."""

    documents: NDArray[np.int64]
    """Fewest documents that hold `DOCUMENTS_SHARE` of it"""
    largest: Floats
    """The largest gain in one document, over what an active document held at the baseline: the mean over documents in
    which the feature was active, or that document's own activation if it is more. Infinite if it was active nowhere"""
    firings: Floats
    """Gained positions in that document"""


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints' places of m features."""

    sums: PerFold
    gains: Gains
    documents_before: NDArray[np.int64]
    """[m] documents in which the feature was active at the baseline"""
    documents: NDArray[np.int64]
    """[m] in the checkpoint"""
    positions: int
    """Positions that are valid in both"""
    threshold: float
    """Smallest possible activation"""


def compare_activity(before: OwnCode, now: OwnCode) -> Comparison:
    """Compare the own codes of a baseline and a checkpoint, with the same m columns and n positions.

    ValueError if the shapes or the features differ.
    """
    if before.matrix.shape != now.matrix.shape:
        raise ValueError(f"the own codes have shapes {before.matrix.shape} and {now.matrix.shape}")
    if not np.array_equal(before.numbers, now.numbers):
        raise ValueError("the own codes have columns of different features")
    both = before.valid & now.valid
    b, c = _entries(before.matrix, both), _entries(now.matrix, both)
    in_b, in_c = _shared(b, c)
    folds = int(now.fold.max(initial=0)) + 1
    fold_b, fold_c = now.fold[b.rows], now.fold[c.rows]

    def sums(entries: _Entries, fold: NDArray[np.int64], chosen: NDArray[np.bool_], weighted: bool = True) -> Floats:
        cells = fold[chosen] * entries.m + entries.columns[chosen]
        weights = entries.values[chosen] if weighted else None
        return np.bincount(cells, weights, folds * entries.m).reshape(folds, entries.m).astype(np.float64)

    every_b, every_c = np.ones(len(in_b), dtype=bool), np.ones(len(in_c), dtype=bool)
    kept_before, kept_now = sums(b, fold_b, in_b), sums(c, fold_c, in_c)
    amplitude = _amplitude(kept_before.sum(0), kept_now.sum(0), np.bincount(b.columns[in_b], minlength=b.m))
    gained = ~in_c & (c.values >= now.threshold * np.maximum(amplitude, 1)[c.columns])
    lost = ~in_b & (b.values * np.minimum(amplitude, 1)[b.columns] >= before.threshold)
    per_fold = PerFold(
        before=sums(b, fold_b, every_b),
        now=sums(c, fold_c, every_c),
        gained=sums(c, fold_c, gained),
        lost=sums(b, fold_b, lost),
        kept_before=kept_before,
        kept_now=kept_now,
        firings_before=sums(b, fold_b, every_b, weighted=False),
        firings=sums(c, fold_c, every_c, weighted=False),
    )
    in_documents_b, in_documents_c = (_by_document(part, now.document) for part in (b, c))
    return Comparison(
        sums=per_fold,
        gains=_gains(_by_document(c.only(gained), now.document), in_documents_b, c.only(gained), now.document),
        documents_before=np.bincount(in_documents_b.indices, minlength=b.m),
        documents=np.bincount(in_documents_c.indices, minlength=c.m),
        positions=int(both.sum()),
        threshold=now.threshold,
    )


class _Entries(NamedTuple):
    """Active entries of a code at common positions, row by row."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: NDArray[np.float64]
    shape: tuple[int, int]

    @property
    def m(self) -> int:
        return self.shape[1]

    def only(self, chosen: NDArray[np.bool_]) -> "_Entries":
        return _Entries(self.rows[chosen], self.columns[chosen], self.values[chosen], self.shape)

    def csr(self, values: NDArray[np.float64]) -> Csr:
        """A matrix with these entries and other values."""
        counts = np.bincount(self.rows, minlength=self.shape[0])
        indptr = np.concatenate([[0], np.cumsum(counts)])
        return scipy.sparse.csr_matrix((values, self.columns, indptr), shape=self.shape)


def _entries(matrix: Csr, rows: NDArray[np.bool_]) -> _Entries:
    counts = np.diff(matrix.indptr)
    chosen = np.repeat(rows, counts)
    row = np.repeat(np.arange(matrix.shape[0]), counts)[chosen]
    return _Entries(row, matrix.indices[chosen].astype(np.int64), matrix.data[chosen].astype(np.float64), matrix.shape)


def _shared(b: _Entries, c: _Entries) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which entries of each code the other one has too."""
    in_b, in_c = np.zeros(len(b.rows), dtype=bool), np.zeros(len(c.rows), dtype=bool)
    # Each entry's value is its number, so the product of the matrices says which entries meet. Doubles hold it exactly.
    places_b, places_c = (part.csr(np.arange(1.0, len(part.rows) + 1)) for part in (b, c))
    ones_b, ones_c = (part.csr(np.ones(len(part.rows))) for part in (b, c))
    in_b[places_b.multiply(ones_c).tocsr().data.astype(np.int64) - 1] = True
    in_c[places_c.multiply(ones_b).tocsr().data.astype(np.int64) - 1] = True
    return in_b, in_c


def _amplitude(before: Floats, now: Floats, positions: NDArray[np.int64]) -> Floats:
    ratio = np.divide(now, before, out=np.ones_like(now), where=before > 0)
    return np.where(positions >= LEAST_KEPT, ratio, 1.0)


def _by_document(entries: _Entries, document: NDArray[np.int64]) -> Csr:
    """Sums over the positions of each document: [documents, m]."""
    n, documents = entries.shape[0], int(document.max(initial=-1)) + 1
    membership = scipy.sparse.csr_matrix((np.ones(n), (document, np.arange(n))), shape=(documents, n))
    return (membership @ entries.csr(entries.values)).tocsr()


def _gains(gained: Csr, before: Csr, entries: _Entries, document: NDArray[np.int64]) -> Gains:
    m = gained.shape[1]
    active = np.bincount(before.indices, minlength=m)
    typical = np.divide(np.asarray(before.sum(0)).ravel(), active, out=np.zeros(m), where=active > 0)
    by_feature = gained.tocsc()
    column = np.repeat(np.arange(m), np.diff(by_feature.indptr))
    order = np.lexsort((-by_feature.data, column))
    row, mass = by_feature.indices[order], by_feature.data[order]
    start, total = by_feature.indptr[:-1], np.asarray(gained.sum(0)).ravel()
    cumulative = np.cumsum(mass)
    earlier = cumulative - mass - np.repeat(np.concatenate([[0.0], cumulative])[start], np.diff(by_feature.indptr))
    documents = np.bincount(column[earlier < DOCUMENTS_SHARE * total[column]], minlength=m)
    usual = np.maximum(typical[column], _at(before, row, column))
    ratio = np.divide(mass, usual, out=np.full(len(mass), np.inf), where=usual > 0)
    largest, firings = np.zeros(m), np.zeros(m)
    np.maximum.at(largest, column, ratio)
    positions = _by_document(entries._replace(values=np.ones(len(entries.rows))), document)
    best = ratio == largest[column]
    np.maximum.at(firings, column[best], _at(positions, row[best], column[best]))
    return Gains(documents, largest, firings)


def _at(matrix: Csr, rows: NDArray[np.integer], columns: NDArray[np.integer]) -> Floats:
    """Single entries of a matrix."""
    return np.asarray(matrix[rows, columns], dtype=np.float64).ravel() if len(rows) else np.zeros(0)
