"""Ridge regression of activations on the code: decoders without training, and how sure each of their rows is.

    X~ ~ F D + 1 b,     D = (F' F + ridge)^-1 F' X~

No sparsity term acts on D, so nothing shrinks towards "exclusive" features (Minder et al. 2025). What one fold of
documents g contributes to the error of D is, to first order,

    e_g = (F' F + ridge)^-1 F_g' (X~_g - F_g D - 1 b) / (1 - h_g),    h_g = share of the feature's energy in fold g

(the influence of the fold, with the leverage correction that makes D - e_g the estimate without it).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from workers.crosscoder.code import Code

Reader = Callable[[Tensor], Tensor]
"""Rows (sorted int64 [b]) -> activations [b, D] of any float type."""

LEAST_ROOM = 0.05
"""Least 1 - h_g that is divided by: of a feature that fires in one fold alone nothing is left without it."""


def transposed_product(code: Code, x: Tensor) -> Tensor:
    """`F' X`: [m, D]. Touches active entries only."""
    rows = torch.arange(code.n, device=x.device).repeat_interleave(code.indptr.diff())
    order = code.latents.argsort(stable=True)
    offsets = torch.zeros(code.m + 1, dtype=torch.int64, device=x.device)
    torch.cumsum(torch.bincount(code.latents, minlength=code.m), 0, out=offsets[1:])
    return embedding_bag(
        rows[order], x, offsets, mode="sum", per_sample_weights=code.values[order], include_last_offset=True
    )


def gram(code: Code) -> Tensor:
    """`F' F`: [m, m] float64."""
    if code.values.is_cuda:
        total = torch.zeros(code.m, code.m, dtype=torch.float64, device=code.values.device)
        for start in range(0, code.n, 8192):
            dense = dense_rows(code.rows(start, min(start + 8192, code.n)))
            total += dense.T @ dense
        return total
    matrix = code.to_scipy().astype(np.float64)
    return torch.from_numpy((matrix.T @ matrix).toarray())


def dense_rows(code: Code) -> Tensor:
    """The code as a dense [n, m] matrix; for blocks of rows."""
    dense = torch.zeros(code.n, code.m, device=code.values.device)
    rows = torch.arange(code.n, device=dense.device).repeat_interleave(code.indptr.diff())
    dense[rows, code.latents] = code.values
    return dense


def take_rows(code: Code, rows: Tensor) -> Code:
    """Some rows of a code, in the order given."""
    counts = code.indptr.diff()[rows]
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    entries = torch.arange(int(indptr[-1]), device=rows.device)
    entries += (code.indptr[rows] - indptr[:-1]).repeat_interleave(counts)
    return Code(indptr, code.latents[entries], code.values[entries], code.m)


def select(code: Code, keep: Tensor) -> Code:
    """The latents where `keep` (bool [m]) holds, numbered anew."""
    place = keep.cumsum(0) - 1
    entries = keep[code.latents]
    kept = torch.cat([entries.new_zeros(1, dtype=torch.int64), entries.cumsum(0)])
    return Code(kept[code.indptr], place[code.latents[entries]], code.values[entries], int(keep.sum()))


def columns(code: Code, start: int, stop: int) -> Code:
    """Latents start..stop of a code, numbered from 0."""
    every = torch.arange(code.m, device=code.latents.device)
    return select(code, (every >= start) & (every < stop))


@dataclass
class Solution:
    """Decoder of one set of sources that stand beside each other."""

    decoder: Tensor
    """float32 [m, D]"""
    bias: Tensor
    """float32 [D]"""
    right: Tensor
    """float64 [m + 1, D]: the right side it was solved from, kept so that more columns cost only themselves"""


class Regression:
    """The left side of the regression, factorised once for any number of right sides.

    `rows`: int64 [r] positions that count (valid in every source compared), ascending. `folds`: int64 [r], the fold
    of each of them; all positions of a document are in one fold. The intercept is one more column of the code.
    """

    def __init__(self, code: Code, rows: Tensor, folds: Tensor, ridge: float = 1e-4, block: int = 8192) -> None:
        self.ridge, self.block, self.n_folds = ridge, block, int(folds.max()) + 1
        self.rows_of = [rows[folds == g] for g in range(self.n_folds)]
        self._set(code, *self._moments(code))

    def extended(self, wide: Code) -> "Regression":
        """The same positions and folds for a code that has more columns after the old ones."""
        fresh = object.__new__(Regression)
        fresh.ridge, fresh.block, fresh.n_folds, fresh.rows_of = self.ridge, self.block, self.n_folds, self.rows_of
        new = columns(wide, self.m, wide.m)
        square, energy = self._moments(new)
        total = torch.zeros(wide.m + 1, wide.m + 1, dtype=torch.float64, device=square.device)
        old = torch.tensor([*range(self.m), wide.m], device=square.device)
        added = torch.arange(self.m, wide.m + 1, device=square.device)
        total[old[:, None], old] = self.square
        total[added[:, None], added] = square
        for rows in self.blocks():
            cross = transposed_product(take_rows(self.code, rows), dense_rows(take_rows(new, rows))).double()
            total[: self.m, self.m : wide.m] += cross
        total[self.m : wide.m, : self.m] = total[: self.m, self.m : wide.m].T
        fresh._set(wide, total, torch.cat([self.energy, energy], 1))
        return fresh

    def _moments(self, code: Code) -> tuple[Tensor, Tensor]:
        """`[F 1]' [F 1]` [m + 1, m + 1] and the sums of f^2 by fold [K, m], float64."""
        m, device = code.m, code.values.device
        square = torch.zeros(m + 1, m + 1, dtype=torch.float64, device=device)
        energy = torch.zeros(self.n_folds, m, dtype=torch.float64, device=device)
        for g, part in enumerate(self.rows_of):
            piece = take_rows(code, part)
            square[:m, :m] += gram(piece)
            square[:m, m].index_add_(0, piece.latents, piece.values.double())
            energy[g].index_add_(0, piece.latents, piece.values.double().square())
        square[m, :m] = square[:m, m]
        square[m, m] = sum(len(part) for part in self.rows_of)
        return square, energy

    def _set(self, code: Code, square: Tensor, energy: Tensor) -> None:
        self.code, self.m, self.square, self.energy = code, code.m, square, energy
        self.count = int(square[-1, -1])
        ridged = square.clone()
        diagonal = ridged.diagonal()[:-1]
        diagonal += self.ridge * float(diagonal[diagonal > 0].mean()) if bool((diagonal > 0).any()) else 1.0
        self.factor = torch.linalg.cholesky(ridged)
        self._inverse: Tensor | None = None
        self.leverage = energy / energy.sum(0).clamp_min(1e-30)
        """h: [K, m], the share of each feature's energy in each fold"""

    def blocks(self, fold: int | None = None) -> Iterator[Tensor]:
        """Rows in blocks, of one fold or of all."""
        for part in self.rows_of if fold is None else [self.rows_of[fold]]:
            yield from part.split(self.block)

    def solve(self, read: Reader, known: Solution | None = None) -> Solution:
        """Decoder and bias for activations [., D]; one pass over them.

        known: the solution on the first columns of this code, whose right side is not computed again.
        """
        first = 0 if known is None else len(known.right) - 1
        code = self.code if known is None else columns(self.code, first, self.m)
        right: Tensor | None = None
        for rows in self.blocks():
            x = read(rows)
            piece = torch.cat([transposed_product(take_rows(code, rows), x), x.sum(0, keepdim=True)]).double()
            right = piece if right is None else right.add_(piece)
        if right is None:
            raise ValueError("no positions to solve a decoder on")
        if known is not None:
            right = torch.cat([known.right[:-1], right])
        solved = torch.cholesky_solve(right, self.factor).float()
        return Solution(solved[: self.m].contiguous(), solved[self.m].contiguous(), right)

    @property
    def inverse(self) -> Tensor:
        """(F' F + ridge)^-1 with the intercept: float32 [m + 1, m + 1]. Errors need no more digits."""
        if self._inverse is None:
            self._inverse = torch.cholesky_inverse(self.factor).float()
        return self._inverse

    def influences(self, read: Reader, solution: Solution, widths: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each fold: e_g [m, D], and the sum of squared residuals of each source [s]. One more pass."""
        for g in range(self.n_folds):
            score = torch.zeros(self.m + 1, solution.decoder.shape[1], device=solution.decoder.device)
            squares = torch.zeros(len(widths), dtype=torch.float64, device=score.device)
            for rows in self.blocks(g):
                piece = take_rows(self.code, rows)
                residual = read(rows) - piece.decode(solution.decoder) - solution.bias
                squares += torch.stack([part.square().sum().double() for part in residual.split(widths, 1)])
                score[: self.m] += transposed_product(piece, residual)
                score[self.m] += residual.sum(0)
            room = (1 - self.leverage[g]).clamp_min(LEAST_ROOM).float().unsqueeze(1)
            yield (self.inverse @ score)[: self.m] / room, squares


def assign_folds(document: Tensor, n_folds: int) -> Tensor:
    """Fold of each position, [n] int64: documents dealt to folds by a fixed shuffle, so folds are alike."""
    documents, index = document.unique(return_inverse=True)
    n_folds = max(2, min(n_folds, len(documents)))
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(0))
    fold = torch.empty(len(documents), dtype=torch.int64)
    fold[order] = torch.arange(len(documents)) % n_folds
    return fold.to(document.device)[index]
