"""Products of a few decoder rows with their errors: as `measure`, at the cost of those rows only.

With `G = [F 1]' [F 1] + ridge` and `W = [F 1] G^-1` restricted to some latents,

    e_g = W_g' (X~_g - F_g D - 1 b) / (1 - h_g)

is what fold g contributes to the error of their rows (see `crosscoder.regress`). The sums have one column per
requested latent, and no full inverse is needed.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from featurewatch.workers.crosscoder.regress import LEAST_ROOM, Reader, Regression, Solution
from featurewatch.workers.verdicts.measure import map_rows, replicates


class Rows(NamedTuple):
    """Decoder rows of j latents."""

    decoder: Tensor
    """float32 [j, D]"""
    errors: Tensor
    """float32 [K, j, D], e_g of each fold"""

    def mapped(self, widths: list[int], maps: list[Tensor | None]) -> "Rows":
        """The rows in another checkpoint's space: the part of each source times its R."""
        return Rows(*(map_rows(part, widths, maps) for part in self))


def weights(regression: Regression, columns: Tensor) -> Tensor:
    """Columns of G^-1 for the latents `columns` (int64 [j]), float32 [m + 1, j]. Independent of the activations."""
    right = torch.zeros(regression.m + 1, len(columns), dtype=torch.float64, device=columns.device)
    right[columns, torch.arange(len(columns), device=columns.device)] = 1.0
    return regression.left.solve(right).float()


def rows_of(regression: Regression, weight: Tensor, columns: Tensor, read: Reader, solution: Solution) -> Rows:
    """Rows of the latents `columns` in a solution, with their errors, in one pass over the activations."""
    errors = torch.zeros(regression.n_folds, len(columns), solution.decoder.shape[1], device=columns.device)
    for block in regression.parts:
        residual = (read(block.rows) - solution.bias).sub_(block.code.decode(solution.decoder))
        errors[block.fold] += (block.code.decode(weight[:-1]) + weight[-1]).T @ residual
    return Rows(solution.decoder[columns], errors / room(regression, columns).to(errors.device).unsqueeze(2))


def room(regression: Regression, columns: Tensor) -> Tensor:
    """1 - h_g of the latents: [K, j]."""
    return (1 - regression.leverage[:, columns]).clamp_min(LEAST_ROOM).float()


def row_products(x: Rows, y: Rows, widths: list[int], share: Tensor) -> Tensor:
    """<x, y> of rows in the same space, corrected for noise, with replicates: [K + 1, h, j]. share: 1 - h_g, [K, j]."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([part.sum(-1) for part in (a * b).split(widths, -1)], -2).cpu()

    cross = dot(x.decoder, y.errors) + dot(y.decoder, x.errors)
    return replicates(dot(x.decoder, y.decoder), cross, dot(x.errors, y.errors), share.cpu().unsqueeze(1))
