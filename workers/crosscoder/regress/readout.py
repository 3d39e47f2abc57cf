"""Read-outs: how a feature's code can be read from one source alone, by an encoder of that source's own.

    f^s(p) = relu(x~_s(p) R + c),     R = (X~' X~ + ridge)^-1 X~' F

The ridge solution ranks positions; the offset c lets the read-out fire as often as the feature does. Readability is
the correlation of f^s with the code at positions that had no part in either.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.regress.ridge import Reader, select, spread_rows, take_rows, transposed_product


class Readout(NamedTuple):
    """Encoder of one source."""

    weight: Tensor
    """float32 [d, m]"""
    bias: Tensor
    """float32 [m]"""
    readability: Tensor
    """float32 [m], correlation at held-out positions; NaN where the code does not vary there"""
    slope: Tensor
    """float32 [m] of the read-out on the code, there too. A regression shrinks what it reads: what a source writes
    weakly is read as less than it is, and who compares sizes divides by this. 1 where nothing is known"""


def solve_readout(
    read: Reader, code: Code, rows: Tensor, folds: Tensor, block: int = 4096, most: int = 8192
) -> Readout:
    """Read-out of a source from its normalised activations. Three folds in four solve it, the others judge it.

    rows, folds: int64 [r] as for the regression. most: positions that offsets and correlations are taken on.
    """
    held_out = folds % 4 == 3
    if not bool(held_out.any()):
        held_out = folds == folds.max()
    train, test = rows[~held_out], rows[held_out]
    square = cross = None
    for some in train.split(block):
        x = read(some)
        product = transposed_product(take_rows(code, some), x)
        square = x.T @ x if square is None else square.addmm_(x.T, x)
        cross = product if cross is None else cross.add_(product)
    if square is None or cross is None:
        raise ValueError("no positions to solve a read-out on")
    square = square.double()
    square.diagonal().add_(1e-3 * float(square.diagonal().mean()) or 1.0)
    weight = torch.linalg.solve(square, cross.T.double()).float()
    fires = torch.bincount(code.latents, minlength=code.m) > 0
    live, firing = fires.nonzero().squeeze(1), select(code, fires)
    part = weight[:, live].contiguous()
    bias, readability, slope = weight.new_zeros(code.m), weight.new_full((code.m,), torch.nan), weight.new_ones(code.m)
    bias[live] = _offsets(read, part, firing, spread_rows(train, most))
    readability[live], slope[live] = _agreement(read, part, bias[live], firing, spread_rows(test, most))
    return Readout(weight, bias, readability, slope)


def _offsets(read: Reader, weight: Tensor, code: Code, rows: Tensor) -> Tensor:
    """Offsets [m] with which each read-out fires as often at the rows as the code does."""
    output = weight.T @ read(rows).T  # [m, r]
    fires = torch.bincount(take_rows(code, rows).latents, minlength=code.m).clamp(1, len(rows))
    if output.is_cuda:
        ranked = output.topk(int(fires.max()), dim=1).values
        return -ranked.gather(1, fires.unsqueeze(1) - 1).squeeze(1)
    places = (len(rows) - fires).tolist()
    # Each latent has a rank of its own, and one place of an order is found faster than the order.
    return -torch.tensor([np.partition(row, k)[k] for row, k in zip(output.numpy(), places, strict=True)])


def _agreement(read: Reader, weight: Tensor, bias: Tensor, code: Code, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Correlation of relu(x R + c) with the code over the rows, and its slope on the code: [m] each."""
    sums = torch.zeros(5, code.m, dtype=torch.float64, device=weight.device)
    for part in rows.split(1024):  # what a cache holds
        output, truth = torch.addmm(bias, read(part), weight).relu_(), take_rows(code, part)
        at = torch.arange(truth.n, device=bias.device).repeat_interleave(truth.indptr.diff())
        values, read_there = truth.values.double(), output[at, truth.latents]
        for place, term in ((1, values), (3, values.square()), (4, values * read_there)):
            sums[place].index_add_(0, truth.latents, term)
        sums[0] += output.sum(0)
        sums[2] += output.square_().sum(0)
    a, b, aa, bb, ab = sums / max(len(rows), 1)
    deviation = ((aa - a * a) * (bb - b * b)).clamp_min(0).sqrt()
    # A read-out that never varies tells nothing: 0. Of a code that never varies there is nothing to tell: NaN.
    correlation = ((ab - a * b) / deviation).where(deviation > 1e-12, 0.0)
    known = bb - b * b > 1e-12 * bb
    slope = ((ab - a * b) / (bb - b * b)).where(known, 1.0)
    return correlation.where(known, torch.nan).float(), slope.float()
