"""Read-outs: encoders that read a feature's code from a single source.

    f^s(p) = relu(x~_s(p) R + c),     R = (X~' X~ + ridge)^-1 X~' F

The ridge solution ranks positions, and the offset c makes the read-out fire as often as the feature. Readability is the
correlation of f^s with the code at held-out positions.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.regress import Reader, select, spread_rows, take_rows, transposed_product


class Readout(NamedTuple):
    """The encoder of one source."""

    weight: Tensor
    """float32 [d, m]"""
    bias: Tensor
    """float32 [m]"""
    readability: Tensor
    """float32 [m], correlation at held-out positions; NaN if the code is constant there"""
    slope: Tensor
    """float32 [m], slope of the read-out on the code at held-out positions. Regression shrinks what it reads, most of
    all what a source writes weakly: divide by the slope to compare sizes. 1 if unknown"""


def solve_readout(
    read: Reader, code: Code, rows: Tensor, folds: Tensor, block: int = 4096, most: int = 8192
) -> Readout:
    """Read-out of a source from its normalised activations, solved on three folds in four and evaluated on the rest.

    rows, folds: int64 [r] as for the regression. most: maximum positions for offsets and correlations.
    """
    held_out = folds % 4 == 3
    if not bool(held_out.any()):
        held_out = folds == folds.max()
    train, test = rows[~held_out], rows[held_out]
    square = cross = None
    for part in train.split(block):
        x = read(part)
        product = transposed_product(take_rows(code, part), x)
        square = x.T @ x if square is None else square.addmm_(x.T, x)
        cross = product if cross is None else cross.add_(product)
    if square is None or cross is None:
        raise ValueError("cannot solve a read-out without positions")
    square = square.double()
    square.diagonal().add_(1e-3 * float(square.diagonal().mean()) or 1.0)
    weight = torch.linalg.solve(square, cross.T.double()).float()
    fires = torch.bincount(code.latents, minlength=code.m) > 0
    live, firing = fires.nonzero().squeeze(1), select(code, fires)
    live_weight = weight[:, live].contiguous()
    bias, readability, slope = weight.new_zeros(code.m), weight.new_full((code.m,), torch.nan), weight.new_ones(code.m)
    bias[live] = _offsets(read, live_weight, firing, spread_rows(train, most))
    test_rows = spread_rows(test, most)
    readability[live], slope[live] = _agreement(read, live_weight, bias[live], firing, test_rows)
    return Readout(weight, bias, readability, slope)


def _offsets(read: Reader, weight: Tensor, code: Code, rows: Tensor) -> Tensor:
    """Offsets [m] at which each read-out fires as often as the code."""
    output = weight.T @ read(rows).T  # [m, r]
    fires = torch.bincount(take_rows(code, rows).latents, minlength=code.m).clamp(1, len(rows))
    if output.is_cuda:
        ranked = output.topk(int(fires.max()), dim=1).values
        return -ranked.gather(1, fires.unsqueeze(1) - 1).squeeze(1)
    places = (len(rows) - fires).tolist()
    # Each latent needs a different rank, and partitioning is faster than sorting.
    return -torch.tensor([np.partition(row, k)[k] for row, k in zip(output.numpy(), places, strict=True)])


def _agreement(read: Reader, weight: Tensor, bias: Tensor, code: Code, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Correlation of relu(x R + c) with the code, and its slope on the code: [m] each."""
    sums = torch.zeros(5, code.m, dtype=torch.float64, device=weight.device)
    for part in rows.split(1024):  # fits into the cache
        output, truth = torch.addmm(bias, read(part), weight).relu_(), take_rows(code, part)
        at = torch.arange(truth.n, device=bias.device).repeat_interleave(truth.indptr.diff())
        values, read_there = truth.values.double(), output[at, truth.latents]
        for place, term in ((1, values), (3, values.square()), (4, values * read_there)):
            sums[place].index_add_(0, truth.latents, term)
        sums[0] += output.sum(0)
        sums[2] += output.square_().sum(0)
    a, b, aa, bb, ab = sums / max(len(rows), 1)
    deviation = ((aa - a * a) * (bb - b * b)).clamp_min(0).sqrt()
    # A constant read-out has readability 0; a constant code leaves it undefined, NaN.
    correlation = ((ab - a * b) / deviation).where(deviation > 1e-12, 0.0)
    known = bb - b * b > 1e-12 * bb
    slope = ((ab - a * b) / (bb - b * b)).where(known, 1.0)
    return correlation.where(known, torch.nan).float(), slope.float()
