"""Products of decoder rows solved on two disjoint halves of the documents: a null from a single checkpoint.

Their errors are independent, so `D_c . D_b` needs no correction. `<D_c, D_c>` and `<D_b, D_b>` are corrected with the
folds of their own half, and each replicate leaves out one fold of one half, with the formulas of `measure`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from featurewatch.workers.crosscoder.regress import LEAST_ROOM, Regression
from featurewatch.workers.verdicts.measure import Products, Side, replicates


class Half(NamedTuple):
    """A half of the documents: its regression, and the decoder solved on it."""

    regression: Regression
    side: Side


def products_of_halves(
    now: Half, before: Half, widths: list[int], fixed: Tensor | None = None, reference: Tensor | None = None
) -> Products:
    """Products over the K folds of both halves, those of `now` first.

    fixed: bool [m], features whose row in `before` is taken from `reference` ([m, D]) and has no error.
    """
    decoder_b = before.side.solution.decoder
    if fixed is not None and reference is not None:
        decoder_b = torch.where(fixed.unsqueeze(1), reference, decoder_b)
    rows_c, rows_b = now.side.solution.decoder.split(widths, 1), decoder_b.split(widths, 1)
    own_c, both_c = _replicates(now, rows_c, rows_b, widths, None)
    own_b, both_b = _replicates(before, rows_b, rows_c, widths, fixed)
    first, second = len(own_c) - 1, len(own_b) - 1
    # The jackknife factor (K - 1) / K is slightly larger for all folds than for each half.
    return Products(
        now=torch.cat([own_c, own_c[:1].expand(second, -1, -1)]),
        before=torch.cat([own_b[:1], own_b[:1].expand(first, -1, -1), own_b[1:]]),
        both=torch.cat([both_c, both_b[1:]]),
    )


def _replicates(
    half: Half, rows: tuple[Tensor, ...], others: tuple[Tensor, ...], widths: list[int], fixed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`<rows, rows>` and `rows . others` [K + 1, h, m]: over all folds of a half, then without each fold."""
    regression = half.regression
    shape = (regression.n_folds, len(widths), regression.m)
    cross, noise, both = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape)
    for g, errors in enumerate(regression.influences(half.side.read, half.side.solution)):
        if fixed is not None:
            errors[fixed] = 0.0
        for s, e in enumerate(errors.split(widths, 1)):
            cross[g, s], noise[g, s] = 2 * (rows[s] * e).sum(1).cpu(), (e * e).sum(1).cpu()
            both[g, s] = (others[s] * e).sum(1).cpu()
    plain = torch.stack([(row * row).sum(1).cpu() for row in rows])
    mixed = torch.stack([(row * other).sum(1).cpu() for row, other in zip(rows, others, strict=True)])
    room = (1 - regression.leverage).clamp_min(LEAST_ROOM).float().cpu().unsqueeze(1)
    return replicates(plain, cross, noise, room), torch.cat([mixed.unsqueeze(0), mixed - both])
