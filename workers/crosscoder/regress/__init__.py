"""Ridge regression of activations on the code: decoders without training, with the uncertainty of each row.

    X~ ~ F D + 1 b,     D = (F' F + ridge)^-1 F' X~

No sparsity term acts on D, so nothing shrinks towards "exclusive" features (Minder et al. 2025). To first order, the
fold of documents g contributes to the error of D

    e_g = (F' F + ridge)^-1 F_g' (X~_g - F_g D - 1 b) / (1 - h_g),    h_g = share of the feature's energy in fold g

(the influence of the fold, with the leverage correction that makes D - e_g the estimate without it).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from featurewatch.workers.crosscoder.code import Code, concatenate_rows
from featurewatch.workers.crosscoder.kernels import ByLatent
from featurewatch.workers.crosscoder.regress.cg import SAMPLE, ConjugateGradient

Reader = Callable[[Tensor], Tensor]
"""Rows (sorted int64 [b]) -> activations [b, D] of any float type."""

CHOLESKY_UP_TO = 8192
"""Maximum latents for which the Gram matrix is formed. At this size and 60,000 positions x 256, both methods take
equally long for an extension, and the Gram matrix takes four times the memory (28 bytes m^2); see `python -m
benchmarks.scale`."""
GRAM_ROWS = 2048

LEAST_ROOM = 0.05
"""Lower limit of the divisor 1 - h_g: without its only fold, nothing is left of a feature."""


def weighted_median(values: Tensor, weight: Tensor) -> float:
    """Weighted median of values [m]; 1 if the weights are empty or all zero.

    Properties shared by a checkpoint's features are weighted by what the features write: most latents of a wide
    dictionary write next to nothing, and that may be specific to one tokenizer.
    """
    if not len(values) or not float(weight.sum()) > 0:
        return 1.0
    order = values.argsort()
    share = weight[order].double().cumsum(0)
    half = torch.searchsorted(share, share[-1:] / 2).clamp_max(len(values) - 1)
    return float(values[order[half]])


def transposed_product(code: Code, x: Tensor) -> Tensor:
    """`F' X`: [m, D], from active entries only."""
    return ByLatent(code).sum_rows(x, code.values.to(x.dtype))


def energies(code: Code) -> Tensor:
    """Sum of f^2 of each latent: [m]."""
    return torch.zeros(code.m, device=code.values.device).index_add_(0, code.latents, code.values.square())


def gram(code: Code) -> Tensor:
    """`F' F`: [m, m] float64."""
    if code.values.is_cuda:
        total = torch.zeros(code.m, code.m, dtype=torch.float64, device=code.values.device)
        for start in range(0, code.n, 8192):
            dense = dense_rows(code.rows(start, min(start + 8192, code.n)))
            total += dense.T @ dense
        return total
    matrix = code.to_scipy().astype(np.float64)
    by_latent, filled = matrix.T.tocsr(), np.empty((code.m, code.m))
    for start in range(0, code.m, GRAM_ROWS):  # one product of everything would double the memory
        filled[start : start + GRAM_ROWS] = (by_latent[start : start + GRAM_ROWS] @ matrix).toarray()
    return torch.from_numpy(filled)


def dense_rows(code: Code) -> Tensor:
    """The code as a dense [n, m] matrix, for blocks of rows."""
    dense = torch.zeros(code.n, code.m, device=code.values.device)
    rows = torch.arange(code.n, device=dense.device).repeat_interleave(code.indptr.diff())
    dense[rows, code.latents] = code.values
    return dense


def take_rows(code: Code, rows: Tensor) -> Code:
    """Rows of a code, in the given order."""
    counts = code.indptr.diff()[rows]
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    entries = torch.arange(int(indptr[-1]), device=rows.device)
    entries += (code.indptr[rows] - indptr[:-1]).repeat_interleave(counts)
    return Code(indptr, code.latents[entries], code.values[entries], code.m)


def put_rows(code: Code, rows: Tensor, n: int) -> Code:
    """The code of some rows as a code of n positions, empty at all others. rows: ascending."""
    counts = torch.zeros(n, dtype=torch.int64, device=rows.device)
    counts[rows] = code.indptr.diff()
    return Code(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), code.latents, code.values, code.m)


def select(code: Code, keep: Tensor) -> Code:
    """The latents where `keep` (bool [m]) holds, renumbered."""
    place = keep.cumsum(0) - 1
    entries = keep[code.latents]
    before = torch.cat([entries.new_zeros(1, dtype=torch.int64), entries.cumsum(0)])
    return Code(before[code.indptr], place[code.latents[entries]], code.values[entries], int(keep.sum()))


def columns(code: Code, start: int, stop: int) -> Code:
    """Latents start to stop of a code, renumbered from 0."""
    entries = ((code.latents >= start) & (code.latents < stop)).nonzero().squeeze(1)
    return Code(
        torch.searchsorted(entries, code.indptr), code.latents[entries] - start, code.values[entries], stop - start
    )


@dataclass
class Solution:
    """The decoder of a set of concatenated sources."""

    decoder: Tensor
    """float32 [m, D]"""
    bias: Tensor
    """float32 [D]"""
    right: Tensor
    """float64 [m + 1, D]: the right side of the equations, so that adding columns costs only those columns"""


class Block:
    """Positions of one fold, with their code by position and by latent."""

    def __init__(self, code: Code, rows: Tensor, fold: int) -> None:
        self.rows, self.fold = rows, fold
        self.code = take_rows(code, rows)

    @cached_property
    def by_latent(self) -> ByLatent:
        return ByLatent(self.code)

    def transposed(self, x: Tensor) -> Tensor:
        """`F' X`: [b, D] -> [m, D]."""
        return self.by_latent.sum_rows(x, self.code.values.to(x.dtype))


class Cholesky:
    """The factorised left side of the regression. square: `[F 1]' [F 1]` float64, without the ridge.

    Latents that never fire get zero decoders and are left out of the factorisation.
    """

    def __init__(self, square: Tensor, ridge: float) -> None:
        self.square = square
        self.live = (square.diagonal() > 0).nonzero().squeeze(1)
        ridged = square[self.live[:, None], self.live]
        ridged.diagonal()[:-1].add_(ridge)
        self.factor = torch.linalg.cholesky(ridged, out=ridged)

    def solve(self, right: Tensor, start: Tensor | None = None) -> Tensor:
        """[m + 1, D] float64, the intercept's last -> decoder and bias. `start` is ignored."""
        return torch.zeros_like(right).index_copy_(0, self.live, torch.cholesky_solve(right[self.live], self.factor))

    @cached_property
    def inverse(self) -> Tensor:
        """(F' F + ridge)^-1 of the latents that fire and the intercept; float32 is enough for errors."""
        return torch.cholesky_inverse(self.factor).float()

    def errors(self, score: Tensor) -> Tensor:
        """[m + 1, D] float32 -> the change of the decoder, [m, D]."""
        errors = torch.zeros_like(score).index_copy_(0, self.live, self.inverse @ score[self.live])
        return errors[:-1]


class Regression:
    """The left side of the regression, prepared once for any number of right sides.

    rows: int64 [r] positions to use (valid in every source compared), ascending. folds: int64 [r] the fold of each; all
    positions of a document share a fold. The intercept is one more column of the code. dense_up_to: maximum latents for
    which the Gram matrix is formed and factorised; conjugate gradient solves larger systems.
    """

    def __init__(
        self,
        code: Code,
        rows: Tensor,
        folds: Tensor,
        ridge: float = 1e-3,
        block: int = 4096,
        dense_up_to: int = CHOLESKY_UP_TO,
    ) -> None:
        self.ridge, self.dense_up_to, self.n_folds = ridge, dense_up_to, int(folds.max()) + 1
        parts = [(part, g) for g in range(self.n_folds) for part in rows[folds == g].split(block)]
        self._begin(code, parts)
        self._set_left(None if self.m > dense_up_to else gram(code if len(rows) == code.n else take_rows(code, rows)))

    def extended(self, wide: Code) -> "Regression":
        """The same positions and folds, for a code with further columns appended."""
        fresh = object.__new__(Regression)
        fresh.ridge, fresh.dense_up_to, fresh.n_folds = self.ridge, self.dense_up_to, self.n_folds
        fresh._begin(wide, [(block.rows, block.fold) for block in self.parts])
        square = None
        if isinstance(self.left, Cholesky) and wide.m <= self.dense_up_to:
            square = torch.zeros(wide.m, wide.m, dtype=torch.float64, device=wide.values.device)
            square[: self.m, : self.m] = self.left.square[: self.m, : self.m]
            for block in fresh.parts:
                square[:, self.m :] += block.transposed(dense_rows(columns(block.code, self.m, wide.m)))
            square[self.m :, : self.m] = square[: self.m, self.m :].T
        fresh._set_left(square)
        return fresh

    def _begin(self, code: Code, parts: list[tuple[Tensor, int]]) -> None:
        """Accumulate the sums of f [m], and of f^2 by fold [K, m], float64."""
        self.code, self.m, device = code, code.m, code.values.device
        self.parts = [Block(code, rows, fold) for rows, fold in parts]
        self.count = sum(len(rows) for rows, _ in parts)
        self.sums = torch.zeros(code.m, dtype=torch.float64, device=device)
        self.energy = torch.zeros(self.n_folds, code.m, dtype=torch.float64, device=device)
        for block in self.parts:
            latents, values = block.code.latents, block.code.values.double()
            self.sums.index_add_(0, latents, values)
            self.energy[block.fold].index_add_(0, latents, values.square())
        self.leverage = self.energy / self.energy.sum(0).clamp_min(1e-30)
        """h: [K, m] share of each feature's energy in each fold"""

    def _set_left(self, square: Tensor | None) -> None:
        """square: `F' F` float64 [m, m]; None to solve by conjugate gradient."""
        energy = self.energy.sum(0)
        ridge = self.ridge * float(energy[energy > 0].mean()) if bool((energy > 0).any()) else 1.0
        self.left: Cholesky | ConjugateGradient
        if square is not None:
            bordered = torch.empty(self.m + 1, self.m + 1, dtype=torch.float64, device=square.device)
            bordered[:-1, :-1] = square
            bordered[:-1, -1] = bordered[-1, :-1] = self.sums
            bordered[-1, -1] = self.count
            self.left = Cholesky(bordered, ridge)
            return
        sample: list[Code] = []
        for block in self.parts:  # folds are shuffled documents, so the first ones are representative
            sample.append(block.code)
            if sum(part.n for part in sample) >= SAMPLE:
                break
        rows = concatenate_rows(sample).to_scipy()
        self.left = ConjugateGradient(self.product, rows, energy, self.sums, self.count, ridge)

    def blocks(self) -> Iterator[Tensor]:
        """Rows in blocks, each within one fold."""
        return (block.rows for block in self.parts)

    def product(self, v: Tensor) -> Tensor:
        """`F' F V`: [m, D] -> [m, D]. Two passes over the active entries."""
        total = torch.zeros_like(v)
        for block in self.parts:
            total += block.transposed(block.code.decode(v))
        return total

    def solve(self, read: Reader, known: Solution | None = None) -> Solution:
        """Decoder and bias for activations [., D], in one pass over them.

        known: the solution for the first columns of this code, whose right side is reused.
        """
        if not self.parts:
            raise ValueError("cannot solve a decoder without positions")
        right = self._right(read) if known is None else self._more(read, known.right)
        solved = self.left.solve(right, None if known is None else known.decoder).float()
        return Solution(solved[: self.m].contiguous(), solved[self.m].contiguous(), right)

    def _right(self, read: Reader) -> Tensor:
        """`[F 1]' X`: [m + 1, D] float64."""
        right: Tensor | None = None
        for block in self.parts:
            x = read(block.rows)
            if right is None:
                right = torch.zeros(self.m + 1, x.shape[1], dtype=torch.float64, device=x.device)
            right[:-1] += block.transposed(x)
            right[-1] += x.sum(0)
        assert right is not None
        return right

    def _more(self, read: Reader, known: Tensor) -> Tensor:
        """The right side when its first rows and its last are known: reads only positions where another latent
        fires."""
        first = len(known) - 1
        right = torch.cat([known[:-1], known.new_zeros(self.m - first, known.shape[1]), known[-1:]])
        for block in self.parts:
            new = columns(block.code, first, self.m)
            fires = new.indptr.diff().nonzero().squeeze(1)
            if len(fires):
                right[first:-1] += transposed_product(take_rows(new, fires), read(block.rows[fires]))
        return right

    def influences(self, read: Reader, solution: Solution) -> Iterator[Tensor]:
        """e_g [m, D] of each fold, in one more pass."""
        for g in range(self.n_folds):
            score = torch.zeros(self.m + 1, solution.decoder.shape[1], device=solution.decoder.device)
            for block in self.parts:
                if block.fold != g:
                    continue
                residual = (read(block.rows) - solution.bias).sub_(block.code.decode(solution.decoder))
                score[:-1] += block.transposed(residual)
                score[-1] += residual.sum(0)
            room = (1 - self.leverage[g]).clamp_min(LEAST_ROOM).float().unsqueeze(1)
            yield self.left.errors(score) / room


def spread_rows(rows: Tensor, most: int) -> Tensor:
    """At most `most` rows, evenly spaced."""
    return rows if len(rows) <= most else rows[torch.linspace(0, len(rows) - 1, most, device=rows.device).long()]


def assign_folds(document: Tensor, n_folds: int) -> Tensor:
    """Fold of each position, int64 [n]: a fixed shuffle assigns documents to folds of similar content."""
    documents, index = document.unique(return_inverse=True)
    n_folds = max(2, min(n_folds, len(documents)))
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(0))
    fold = torch.empty(len(documents), dtype=torch.int64)
    fold[order] = torch.arange(len(documents)) % n_folds
    return fold.to(document.device)[index]
