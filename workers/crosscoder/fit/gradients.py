"""Loss of a batch and its gradients, written out: only the encoder's forward product is dense.

    loss = mean over Matryoshka levels and positions of sum_s v_s ||x~_s - xhat_s||^2 / d_s  +  penalty  +  aux

Levels: of a position's code, level g decodes the first latents up to its prefix, so the error of latent i counts in
every level that it belongs to. In the products, every position has one row per level, which holds the latents that
the level adds: one decode, one pass over the code and one over each matrix serve all levels.

    penalty   l1: lambda sum_i price_i f_i sum_s ||d_i^s||;  jumprelu: lambda sum_i price_i [f_i > 0]
    aux       AuxK (Gao et al. 2024): dead latents reconstruct what the living ones leave

The step function of `jumprelu` has the gradient of a rectangular kernel (Rajamanoharan et al. 2024); norms in scores
and thresholds are held fixed, as in every BatchTopK.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from featurewatch.workers.crosscoder import preactivations as select
from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.kernels import ByLatent, row_dots
from featurewatch.workers.crosscoder.model import Crosscoder
from featurewatch.workers.crosscoder.parallel import Parallel
from featurewatch.workers.crosscoder.preactivations import Chosen, PreActivations


class View(NamedTuple):
    """A batch as the encoder sees it and as it is to be reconstructed."""

    x: Tensor
    """[b, D], zeros where a source is not valid"""
    valid: Tensor | None
    """[b, D] 1 where the source is valid; None: everywhere"""
    inputs: Tensor
    """[b, D]: x of the sources that the encoder sees, times S over their number"""


class Result(NamedTuple):
    """Of one batch on one rank; sums over the rank's positions, divided by the number of all ranks' positions."""

    loss: float
    gradients: list[Tensor]
    """in the order of `Crosscoder.parameters`"""
    chosen: Chosen
    fired: Tensor
    """int64 [m]"""
    error: Tensor
    """[b, D] of all latents together"""


def view(model: Crosscoder, x: Tensor, draw: Tensor | None) -> View:
    """NaN columns become absent sources. draw: [b, S]; the encoder doesn't see sources under `source_dropout`, but for
    the position's last one, the highest of those that are valid."""
    widths = model.layout.widths
    spread = torch.tensor(widths, device=x.device)
    valid = None
    if bool(x.sum().isnan()):
        valid = ~x[:, model.layout.starts].isnan()
        x = x.masked_fill(~valid.repeat_interleave(spread, 1), 0.0)
    seen = valid
    if draw is not None and len(widths) > 1:
        draw = draw.to(x.device)
        seen = draw >= model.config.source_dropout
        if valid is not None:
            seen &= valid
            draw = draw.masked_fill(~valid, -1.0)
        lone = ~seen.any(1)
        seen[lone] |= draw[lone] == draw[lone].amax(1, keepdim=True)
        if valid is not None:
            seen &= valid
    if seen is None:
        return View(x, None, x)
    gain = seen * (len(widths) / seen.sum(1, keepdim=True).clamp_min(1))
    inputs = x * gain.repeat_interleave(spread, 1)
    return View(x, None if valid is None else valid.repeat_interleave(spread, 1).float(), inputs)


def choose(model: Crosscoder, pre: PreActivations, cut: float, n: int, parallel: Parallel) -> Chosen:
    """The batch's code by the model's sparsity function. n: positions of all ranks' batches."""
    config, norms = model.config, model.norms()
    match config.sparsity:
        case "batch_topk":
            return select.batch_topk(pre, norms / model.prices.sqrt(), n * config.k, cut, parallel)
        case "topk":
            return select.topk(pre, norms / model.prices.sqrt(), config.k, parallel)
        case "l1":
            return select.relu(pre)
        case "jumprelu":
            return select.jumprelu(pre, model.threshold.exp() / norms, config.bandwidth)


def by_level(code: Code, groups: list[tuple[int, int]], first: int) -> tuple[Code, Tensor | None]:
    """The code with one row for each (level, position), which holds what the level adds, and the order of its entries.

    first: number of the code's first latent among all. One level: the code itself, None.
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


def gradients(model: Crosscoder, batch: View, chosen: Chosen, weight: Tensor, penalty: float, n: int,
              parallel: Parallel, dtype: torch.dtype = torch.float32) -> Result:  # fmt: skip
    """Loss and gradients of one rank's positions. weight: [D] 1 / d_s. n: positions of all ranks' batches.

    dtype: of what the matrices' gradients are sums of.
    """
    config, groups, b = model.config, model.config.groups, len(batch.x)
    levels, order = by_level(chosen.code, groups, model.first)
    pre = chosen.pre if order is None else chosen.pre[order]

    decoded = parallel.sum_over_latents(levels.decode(model.decoder))
    if len(groups) > 1:
        decoded = decoded.view(len(groups), b, -1).cumsum(0).flatten(0, 1)
    error = model.spread(decoded).view(len(groups), b, -1).add_(model.decoder_bias).sub_(batch.x)
    if batch.valid is not None:
        error *= batch.valid
    # One width: the weight is one number, and it goes to the short vectors below instead of over the whole error.
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
    more, threshold = _penalty(model, levels, pre, slope, by_latent, decoder, penalty / n)
    inputs, rows = batch.inputs.to(dtype), by_latent.rows if len(groups) == 1 else by_latent.rows % b
    result = [by_latent.sum_rows(inputs, slope, rows), by_latent.sum(slope), decoder, upstream]
    if threshold is not None:
        result.append(threshold)
    fired = by_latent.counts.long()
    if config.sparsity == "jumprelu":
        fired = by_latent.sum((levels.values > 0).long())
    return Result(loss + parallel_share(more, parallel), result, chosen, fired, error[-1])


def _penalty(model: Crosscoder, code: Code, pre: Tensor, slope: Tensor, by_latent: ByLatent, decoder: Tensor,
             weight: float) -> tuple[float, Tensor | None]:  # fmt: skip
    """Adds the penalty's part to the slope of the code and the decoder's gradient, in place; returns its value and
    the gradient of log thresholds. weight: lambda over the number of positions."""
    latents, prices = code.latents, model.prices
    if model.config.sparsity == "l1":
        rows = model.rows()
        norms = torch.stack([part.norm(dim=1) for part in rows.split(model.layout.widths, 1)], 1).clamp_min(1e-12)
        cost = prices * norms.sum(1) * weight
        slope += cost.index_select(0, latents)
        active = by_latent.sum(code.values)
        spread = norms.repeat_interleave(torch.tensor(model.layout.widths, device=norms.device), 1)
        decoder += model.collect(rows / spread) * (active * prices * weight).unsqueeze(1)
        return float(active @ cost), None
    if model.config.sparsity == "jumprelu":
        threshold, norms = model.threshold.exp(), model.norms()
        score = pre * norms.index_select(0, latents)
        reach = threshold.index_select(0, latents)
        edge = ((score - reach).abs() < 0.5 * model.config.bandwidth * reach).float() / model.config.bandwidth
        # d f / d log theta = -(theta / bandwidth) K / norm;  d [f > 0] / d log theta = -K / bandwidth
        log_threshold = by_latent.sum(
            -edge * (slope * reach / norms.index_select(0, latents) + weight * prices[latents])
        )
        slope *= code.values > 0
        return float(prices[latents[code.values > 0]].sum()) * weight, log_threshold
    return 0.0, None


def parallel_share(value: float, parallel: Parallel) -> float:
    """A term that each latent rank has a part of, as a part of a loss that all of them have whole."""
    return value if parallel.latent == 1 else float(parallel.sum_over_latents(torch.tensor(value)))
