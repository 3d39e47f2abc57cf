"""Conjugate gradient for regressing many columns on a sparse code whose Gram matrix is too large to form.

    (F_c' F_c + lambda) D = F_c' X,        F_c = F - 1 f'  (f: the mean code; that is the intercept, eliminated)

Only products F V and F' Y are needed. Plain conjugate gradient is slow here because of latents that fire together
(splits of one feature, near duplicates). They come in small groups, so the preconditioner inverts the Gram matrix
within groups of correlated latents exactly and uses the diagonal elsewhere (block Jacobi). On codes of 1,024 latents,
planted and SmolLM2's, 8 to 11 iterations give a decoder within 1e-4; the diagonal alone takes 74 to 122. Method and
preconditioning: Hestenes and Stiefel 1952; Saad 2003, chapters 6 and 9.
"""

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

GROUP = 64
"""Maximum size of a group."""
CORRELATED = 0.1
"""Correlation from which two latents should share a group."""
SAMPLE = 2**20
"""Maximum positions for the correlations, which affect only the speed of convergence."""
ENTRIES = 2**24
"""Maximum products of two latents in memory during the search for pairs."""
EXACT = 3e-6
"""Tolerance of decoders: norm of the preconditioned residual over that of the right side. They are then within 1e-4."""
ROUGH = 2e-2
"""Tolerance of the folds' influences, which give the standard errors."""
ROUND = 1e-3
ROUNDS = 4
"""Maximum refinement rounds in float32, each of which reduces the float64 residual to ROUND. float64 does the rest."""
MOST = 500
"""Maximum iterations."""
COLUMNS = 1024
"""Right sides solved at a time: five matrices of this many columns are in memory."""


class ConjugateGradient:
    """The left side of the regression, given by its products with vectors.

    product: V [m, D] -> F' F V. sample: a CSR matrix of some rows of F, for the preconditioner. energy, sums: sums of
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
        """of the most recent call"""

    def solve(self, right: Tensor, start: Tensor | None = None) -> Tensor:
        """[m + 1, D] float64 right sides, the intercept's last -> decoder and bias.

        start: an approximate decoder [., D] of the first latents.
        """
        self.iterations = 0
        decoder = right.new_zeros(len(right) - 1, right.shape[1])
        if start is not None:
            decoder[: len(start)] = start
        for columns in _columns(right):
            decoder[:, columns] = self._refined(self._reduced(right[:, columns]), decoder[:, columns])
        bias = (right[-1] - self.sums @ decoder) / self.count
        return torch.cat([decoder, bias.unsqueeze(0)])

    def errors(self, score: Tensor) -> Tensor:
        """[m + 1, D] float32 -> the change of the decoder, [m, D], at the precision that standard errors need."""
        self.iterations = 0
        return torch.cat([self._steps(self._reduced(score[:, columns]), ROUGH) for columns in _columns(score)], 1)

    def _reduced(self, right: Tensor) -> Tensor:
        """Right sides with the intercept eliminated."""
        return right[:-1] - torch.outer(self.sums.to(right.dtype) / self.count, right[-1])

    def _left(self, v: Tensor) -> Tensor:
        sums = self.sums.to(v.dtype)
        return self.product(v).addcmul_(sums.unsqueeze(1), sums @ v, value=-1 / self.count).add_(v, alpha=self.ridge)

    def _refined(self, right: Tensor, x: Tensor) -> Tensor:
        """Iterations in float32, where sparse products are several times as fast, on residuals in float64."""
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
    """Solve for all columns of `right` [m, D] independently. Returns the solution and the number of iterations.

    tolerance: norm of every column's residual, in the preconditioner's norm, over that of the right side. After `most`
    iterations the current solution is returned with a warning.
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
    excess = float((size / goal.clamp_min(tiny)).max()) ** 0.5 * tolerance
    warnings.warn(
        f"a regression did not converge: relative residual {excess:.1e} after {most} iterations", stacklevel=2
    )
    return x, most


class Groups:
    """Block Jacobi preconditioner: exact inverses within groups of correlated latents, the diagonal elsewhere."""

    def __init__(self, sample: scipy.sparse.csr_matrix, diagonal: Tensor, ridge: float) -> None:
        self.root = diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny).rsqrt()
        self.places: list[Tensor] = []
        """int64 [groups, size] latents of each group, by size; padded with m"""
        self.inverses: list[Tensor] = []
        """float64 [groups, size, size] of the left side, scaled to a unit diagonal"""
        # Share of the diagonal without the ridge, which reduces the correlations.
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
            groups = np.flatnonzero((counts > size // 2) & (counts <= size))
            if len(groups):
                number = np.full(len(counts), -1)
                number[groups] = np.arange(len(groups))
                places = np.full((len(groups), size), m)
                inside = np.flatnonzero(number[group] >= 0)
                places[number[group[inside]], slot[inside]] = inside
                # This includes latents that never fire together, which have a negative correlation.
                matrix = -mean[places][:, :, None] * mean[places][:, None, :]
                matrix[:, np.arange(size), np.arange(size)] = 1 + 1e-9
                same = number[group[i]] >= 0
                matrix[number[group[i[same]]], slot[i[same]], slot[j[same]]] += c[same]
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
    """Correlations of latents that fire together, over a sample of rows."""

    def __init__(self, sample: scipy.sparse.csr_matrix) -> None:
        self.rows = sample.astype(np.float64)
        n = max(sample.shape[0], 1)
        self.mean = np.asarray(self.rows.sum(0)).ravel() / n
        energy = np.asarray(self.rows.multiply(self.rows).sum(0)).ravel() - n * self.mean**2
        self.scale = np.divide(1.0, np.sqrt(energy.clip(0)), out=np.zeros_like(energy), where=energy > 1e-12 * n)
        self.mean_share = n**0.5 * self.mean * self.scale
        """Contribution of a latent's mean: the product of two is subtracted from their cosine"""
        self.by_latent = self.rows.T.tocsr()

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(i, j, correlation) with i < j, of pairs over CORRELATED."""
        parts = []
        for i, j, cosine in self._of(self.by_latent, self.rows, np.arange(self.rows.shape[1])):
            c = cosine - self.mean_share[i] * self.mean_share[j]
            keep = (i < j) & (c > CORRELATED)
            parts.append((i[keep], j[keep], c[keep]))
        return _joined(parts)

    def within(self, label: np.ndarray, use: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(i, j, cosine) of different latents with the same label, where `use` (bool [m]) holds. Not centred."""
        latents = np.flatnonzero(use)
        parts = []
        for i, j, c in self._of(self.by_latent[latents], self.rows[:, latents], latents):
            keep = (label[i] == label[j]) & (i != j)
            parts.append((i[keep], j[keep], c[keep]))
        return _joined(parts)

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
    """Group label of each latent, [m]: joins the most correlated pairs first, up to GROUP latents in a group."""
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
