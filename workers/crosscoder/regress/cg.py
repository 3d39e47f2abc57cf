"""Conjugate gradient for the regression of many columns on a sparse code whose Gram is too large to be formed.

    (F_c' F_c + lambda) D = F_c' X,        F_c = F - 1 f'  (f: the mean code; that is the intercept, eliminated)

Only products F V and F' Y are needed. What makes plain conjugate gradient slow here are latents that fire together
(splits of one feature, near twins): they come in small groups, so the preconditioner inverts the Gram within groups
of correlated latents exactly and takes the diagonal for the rest (block Jacobi). On codes of 1,024 latents, planted
and SmolLM2's, that is 8 to 11 iterations to a decoder within 1e-4, where the diagonal alone takes 74 to 122.
Method and preconditioning: Hestenes and Stiefel 1952; Saad 2003, chapters 6 and 9.
"""

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

GROUP = 64
"""Latents that are inverted together at most."""
CORRELATED = 0.1
"""Correlation from which on two latents should be in one group."""
SAMPLE = 2**20
"""Positions that correlations are taken from at most: they steer the speed of convergence, not what it leads to."""
ENTRIES = 2**24
"""Products of two latents that are held at once at most while pairs are looked for."""
EXACT = 3e-6
"""Tolerance of decoders: the preconditioned residual's norm over the right side's. They are within 1e-4 then."""
ROUGH = 2e-2
"""Tolerance of the influences of folds, from which standard errors are made."""
ROUND = 1e-3
ROUNDS = 4
"""Rounds in float32, of which each reduces the float64 residual to ROUND; what is left then is solved in float64."""
MOST = 500
COLUMNS = 1024
"""Right sides that are solved at once: five matrices of so many columns are held."""


class ConjugateGradient:
    """Left side of the regression, known by its products with vectors.

    product: V [m, D] -> F' F V. sample: a CSR matrix of some of F's rows, for the preconditioner. energy, sums: sums of
    f^2 and of f over all positions, float64 [m]. ridge: lambda.
    """

    def __init__(
        self,
        product: Callable[[Tensor], Tensor],
        sample: scipy.sparse.csr_matrix,
        energy: Tensor,
        sums: Tensor,
        count: int,
        ridge: float,
    ) -> None:
        self.product, self.sums, self.count, self.ridge = product, sums, count, ridge
        self.precondition = Groups(sample, (energy - sums.square() / count).clamp_min(0.0) + ridge, ridge)
        self.iterations = 0
        """that the last right sides took"""

    def solve(self, right: Tensor, start: Tensor | None = None) -> Tensor:
        """[m + 1, D] float64 right sides, the intercept's last -> decoder and bias.

        start: a decoder [., D] of the first latents that is near."""
        self.iterations = 0
        decoder = right.new_zeros(len(right) - 1, right.shape[1])
        if start is not None:
            decoder[: len(start)] = start
        for columns in _columns(right):
            decoder[:, columns] = self._refined(self._reduced(right[:, columns]), decoder[:, columns])
        bias = (right[-1] - self.sums @ decoder) / self.count
        return torch.cat([decoder, bias.unsqueeze(0)])

    def errors(self, score: Tensor) -> Tensor:
        """[m + 1, D] float32 -> what it changes in the decoder, [m, D], as exactly as standard errors need."""
        self.iterations = 0
        return torch.cat([self._steps(self._reduced(score[:, columns]), ROUGH) for columns in _columns(score)], 1)

    def _reduced(self, right: Tensor) -> Tensor:
        """Right sides with the intercept eliminated."""
        return right[:-1] - torch.outer(self.sums.to(right.dtype) / self.count, right[-1])

    def _left(self, v: Tensor) -> Tensor:
        sums = self.sums.to(v.dtype)
        return self.product(v).addcmul_(sums.unsqueeze(1), sums @ v, value=-1 / self.count).add_(v, alpha=self.ridge)

    def _refined(self, right: Tensor, x: Tensor) -> Tensor:
        """Steps in float32, where sparse products are several times as fast, on residuals in float64."""
        goal = (right * self.precondition(right)).sum(0) * EXACT**2
        for _ in range(ROUNDS):
            residual = right - self._left(x) if bool(x.any()) else right
            if bool(((residual * self.precondition(residual)).sum(0) <= goal).all()):
                return x
            x = x + self._steps(residual.float(), ROUND)
        return self._steps(right, EXACT, x)

    def _steps(self, right: Tensor, tolerance: float, start: Tensor | None = None) -> Tensor:
        solved, iterations = conjugate_gradient(self._left, self.precondition, right, start, tolerance)
        self.iterations += iterations
        return solved


def _columns(right: Tensor) -> list[slice]:
    return [slice(start, start + COLUMNS) for start in range(0, right.shape[1], COLUMNS)]


def conjugate_gradient(
    left: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    right: Tensor,
    start: Tensor | None,
    tolerance: float,
    most: int = MOST,
) -> tuple[Tensor, int]:
    """Solve for all columns of `right` [m, D], each with steps of its own; the number of iterations.

    tolerance: of the residual in the preconditioner's norm, over that of the right side, in every column. A system that
    takes more than `most` iterations is left as near as it came, with a warning.
    """
    tiny = torch.finfo(right.dtype).tiny
    turned = precondition(right)
    size, direction = (right * turned).sum(0), turned
    goal = size * tolerance**2
    x, residual = torch.zeros_like(right), right
    if start is not None:
        x, residual = start, right - left(start)
        turned = precondition(residual)
        size, direction = (residual * turned).sum(0), turned
    for iteration in range(most):
        if bool((size <= goal).all()):
            return x, iteration
        product = left(direction)
        step = size / (direction * product).sum(0).clamp_min(tiny)
        x, residual = x + step * direction, residual - step * product
        turned = precondition(residual)
        size, before = (residual * turned).sum(0), size
        direction = turned + (size / before.clamp_min(tiny)) * direction
    off = float((size / goal.clamp_min(tiny)).max()) ** 0.5 * tolerance
    warnings.warn(f"a regression is at {off:.1e} of its right side after {most} iterations", stacklevel=2)
    return x, most


class Groups:
    """Block Jacobi: the inverse of the left side within groups of correlated latents, of its diagonal elsewhere."""

    def __init__(self, sample: scipy.sparse.csr_matrix, diagonal: Tensor, ridge: float) -> None:
        self.root = diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny).rsqrt()
        self.places: list[Tensor] = []
        """of groups of one size: int64 [groups, size] latents, m where a group is smaller"""
        self.inverses: list[Tensor] = []
        """float64 [groups, size, size], of the left side scaled to a unit diagonal"""
        # How much of the diagonal is not the ridge's: correlations with the ridge are smaller by that.
        damping = (1 - ridge * self.root.square()).clamp_min(0.0).sqrt().cpu().numpy()
        correlations = _Correlations(sample)
        label = _grouped(*correlations.pairs(), sample.shape[1])
        self._invert(correlations, label, damping)

    def _invert(self, correlations: "_Correlations", label: np.ndarray, damping: np.ndarray) -> None:
        device, m = self.root.device, len(label)
        order = np.argsort(label, kind="stable")
        _, first, counts = np.unique(label[order], return_index=True, return_counts=True)
        slot, group = np.empty(m, np.int64), np.empty(m, np.int64)
        slot[order] = np.arange(m) - np.repeat(first, counts)
        group[order] = np.repeat(np.arange(len(counts)), counts)
        i, j, c = correlations.within(label, counts[group] > 1)
        c *= damping[i] * damping[j]
        mean = np.append(correlations.mean_share * damping, 0.0)
        size = 2
        while size <= GROUP:
            chosen = np.flatnonzero((counts > size // 2) & (counts <= size))
            if len(chosen):
                number = np.full(len(counts), -1)
                number[chosen] = np.arange(len(chosen))
                places = np.full((len(chosen), size), m)
                inside = np.flatnonzero(number[group] >= 0)
                places[number[group[inside]], slot[inside]] = inside
                # Also of latents that never fire together: the correlation of those is below 0.
                matrix = -mean[places][:, :, None] * mean[places][:, None, :]
                matrix[:, np.arange(size), np.arange(size)] = 1 + 1e-9
                mine = number[group[i]] >= 0
                matrix[number[group[i[mine]]], slot[i[mine]], slot[j[mine]]] += c[mine]
                self.places.append(torch.from_numpy(places).to(device))
                self.inverses.append(torch.cholesky_inverse(torch.linalg.cholesky(torch.from_numpy(matrix).to(device))))
            size *= 2

    def __call__(self, residual: Tensor) -> Tensor:
        """[m, D] -> [m, D]"""
        root = self.root.to(residual.dtype).unsqueeze(1)
        scaled = torch.cat([residual * root, residual.new_zeros(1, residual.shape[1])])
        for places, inverse in zip(self.places, self.inverses, strict=True):
            scaled[places] = inverse.to(residual.dtype) @ scaled[places]
        return scaled[:-1] * root


class _Correlations:
    """Correlations of latents that fire together, over the rows of a sample."""

    def __init__(self, sample: scipy.sparse.csr_matrix) -> None:
        self.rows = sample.astype(np.float64)
        n = max(sample.shape[0], 1)
        self.mean = np.asarray(self.rows.sum(0)).ravel() / n
        energy = np.asarray(self.rows.multiply(self.rows).sum(0)).ravel() - n * self.mean**2
        self.scale = np.divide(1.0, np.sqrt(energy.clip(0)), out=np.zeros_like(energy), where=energy > 1e-12 * n)
        self.mean_share = n**0.5 * self.mean * self.scale
        """what two latents' means take from their product, as the square root"""
        self.by_latent = self.rows.T.tocsr()

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(i, j, correlation) with i < j, of those over CORRELATED."""
        every = np.arange(self.rows.shape[1])
        found = []
        for i, j, cosine in self._of(self.by_latent, self.rows, every):
            c = cosine - self.mean_share[i] * self.mean_share[j]
            keep = (i < j) & (c > CORRELATED)
            found.append((i[keep], j[keep], c[keep]))
        return _joined(found)

    def within(self, label: np.ndarray, use: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(i, j, cosine) of different latents of one label where `use` (bool [m]) holds. The means are in it."""
        latents = np.flatnonzero(use)
        found = []
        for i, j, c in self._of(self.by_latent[latents], self.rows[:, latents], latents):
            keep = (label[i] == label[j]) & (i != j)
            found.append((i[keep], j[keep], c[keep]))
        return _joined(found)

    def _of(
        self, left: scipy.sparse.csr_matrix, right: scipy.sparse.csr_matrix, latents: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        step = max(1, ENTRIES // max(len(latents), 1))
        for start in range(0, len(latents), step):
            product = (left[start : start + step] @ right).tocoo()
            i, j = latents[product.row + start], latents[product.col]
            yield i, j, product.data * self.scale[i] * self.scale[j]


def _joined(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    empty = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    i, j, c = (np.concatenate(column) for column in zip(empty, *parts, strict=True))
    return i, j, c


def _grouped(i: np.ndarray, j: np.ndarray, correlation: np.ndarray, m: int) -> np.ndarray:
    """Label of each latent [m]: the most correlated pairs are joined first, as long as a group stays small enough."""
    parent, size = list(range(m)), [1] * m

    def root(latent: int) -> int:
        while parent[latent] != latent:
            parent[latent] = parent[parent[latent]]
            latent = parent[latent]
        return latent

    order = np.argsort(-correlation, kind="stable")[: 16 * m]
    for a, b in zip(i[order].tolist(), j[order].tolist(), strict=True):
        first, second = root(a), root(b)
        if first != second and size[first] + size[second] <= GROUP:
            parent[second] = first
            size[first] += size[second]
    return np.array([root(latent) for latent in range(m)], dtype=np.int64)
