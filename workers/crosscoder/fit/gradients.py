"""Loss of a batch and its gradients, derived by hand: only the encoder's forward product is dense.

    loss = mean over Matryoshka levels and positions of sum_s v_s ||x~_s - xhat_s||^2 / d_s  +  penalty  +  aux

Level g decodes the latents up to its prefix, so the error of latent i counts in every level that contains it. Each
position has one row per level, holding the latents that the level adds: one decode, one pass over the code and one
over each matrix serve all levels.

    penalty   see `sparsity`
    aux       AuxK (Gao et al. 2024): dead latents reconstruct the residual of the live ones
"""

from typing import NamedTuple

import torch
from torch import Tensor

from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.kernels import ByLatent, row_dots
from featurewatch.workers.crosscoder.model import Crosscoder
from featurewatch.workers.crosscoder.parallel import Parallel
from featurewatch.workers.crosscoder.sparsity import Gradients, Selection


class View(NamedTuple):
    """A batch as the encoder sees it, and its reconstruction target."""

    x: Tensor
    """[b, D], zero where a source is invalid"""
    valid: Tensor | None
    """[b, D], 1 where the source is valid; None if it is valid everywhere"""
    inputs: Tensor
    """[b, D]: x of the visible sources, times S over their number"""


class Result(NamedTuple):
    """One batch on one rank: sums over the rank's positions, divided by the number of positions over all ranks."""

    loss: float
    gradients: list[Tensor]
    """In the order of `Crosscoder.parameters`"""
    fired: Tensor
    """int64 [m] positions at which each latent is active"""
    error: Tensor
    """[b, D] reconstruction minus x, from all latents"""


def view(model: Crosscoder, x: Tensor, draw: Tensor | None) -> View:
    """Treat NaN columns as missing sources, and hide sources from the encoder.

    draw: uniform [b, S]. Sources drawn below `source_dropout` are hidden; if that hides all valid ones, the one with
    the highest draw stays visible.
    """
    widths = model.layout.widths
    spread = torch.tensor(widths, device=x.device)
    valid = None
    if bool(x.sum().isnan()):
        valid = ~x[:, model.layout.starts].isnan()
        x = x.masked_fill(~valid.repeat_interleave(spread, 1), 0.0)
    visible = valid
    if draw is not None and len(widths) > 1:
        draw = draw.to(x.device)
        visible = draw >= model.config.source_dropout
        if valid is not None:
            visible &= valid
            draw = draw.masked_fill(~valid, -1.0)
        hidden = ~visible.any(1)
        visible[hidden] |= draw[hidden] == draw[hidden].amax(1, keepdim=True)
        if valid is not None:
            visible &= valid
    if visible is None:
        return View(x, None, x)
    gain = visible * (len(widths) / visible.sum(1, keepdim=True).clamp_min(1))
    inputs = x * gain.repeat_interleave(spread, 1)
    return View(x, None if valid is None else valid.repeat_interleave(spread, 1).float(), inputs)


def by_level(code: Code, groups: list[tuple[int, int]], first: int) -> tuple[Code, Tensor | None]:
    """The code with one row per (level, position), holding the latents that the level adds; and its entries' order.

    first: index of the code's first latent. With a single level, returns the code itself and None.
    """
    if len(groups) == 1:
        return code, None
    bounds = torch.tensor([stop for _, stop in groups[:-1]], device=code.latents.device)
    rows = torch.arange(code.n, device=bounds.device).repeat_interleave(code.indptr.diff())
    rows = rows + code.n * torch.bucketize(code.latents + first, bounds, right=True)
    order = rows.argsort(stable=True)
    indptr = torch.zeros(len(groups) * code.n + 1, dtype=torch.int64, device=bounds.device)
    torch.cumsum(torch.bincount(rows, minlength=len(groups) * code.n), 0, out=indptr[1:])
    return Code(indptr, code.latents[order], code.values[order], code.m), order


def gradients(model: Crosscoder, batch: View, selection: Selection, weight: Tensor, penalty: float, n: int,
              parallel: Parallel, dtype: torch.dtype = torch.float32) -> Result:  # fmt: skip
    """Loss and gradients of one rank's positions. weight: [D] 1 / d_s. n: positions of the batch over all ranks.

    dtype: of the terms that are summed into the matrices' gradients.
    """
    groups, b = model.config.groups, len(batch.x)
    levels, order = by_level(selection.code, groups, model.first)
    pre = selection.pre if order is None else selection.pre[order]

    decoded = parallel.sum_over_latents(levels.decode(model.decoder))
    if len(groups) > 1:
        decoded = decoded.view(len(groups), b, -1).cumsum(0).flatten(0, 1)
    error = model.spread(decoded).view(len(groups), b, -1).add_(model.decoder_bias).sub_(batch.x)
    if batch.valid is not None:
        error *= batch.valid
    # With one width the weight is a scalar: it scales the short vectors below instead of the whole error.
    scale, weighted = 1.0 / (n * len(groups)), error
    if model.layout.uniform:
        scale *= float(weight[0])
    else:
        weighted = error * weight
    loss = float(error.flatten() @ weighted.flatten()) * scale
    upstream = weighted.sum((0, 1)) * (2 * scale)
    if len(groups) > 1:
        weighted = weighted.flip(0).cumsum(0).flip(0)
    back = model.collect(weighted.view(len(groups) * b, -1))

    by_latent = ByLatent(levels)
    slope = row_dots(back, model.decoder, levels).mul_(2 * scale)
    decoder = by_latent.sum_rows(back.to(dtype), levels.values * (2 * scale))
    partial = Gradients(levels, pre, by_latent, slope, decoder)
    cost, threshold = model.sparsity.penalty(model, partial, penalty / n)
    inputs, rows = batch.inputs.to(dtype), by_latent.rows if len(groups) == 1 else by_latent.rows % b
    result = [by_latent.sum_rows(inputs, slope, rows), by_latent.sum(slope), decoder, upstream]
    if threshold is not None:
        result.append(threshold)
    if parallel.latent > 1:  # each rank already has the whole loss, but only its latents' part of the cost
        cost = float(parallel.sum_over_latents(torch.tensor(cost)))
    return Result(loss + cost, result, model.sparsity.firings(partial), error[-1])
