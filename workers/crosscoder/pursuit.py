"""Activations read anew: what the active latents must be for the decoder to explain a position best.

    f <- f + c max(D (x - f D) / ||d||^2, -f) on the active latents,     c in [0, 1] the best length at each position

A linear encoder reads latent i as f_i = sum_j a_j e_i . d_j: of whatever else fires at the position and is written in
part along its own direction, some leaks into it. Among the active latents these steps take that out (gradient pursuit,
Blumensath and Davies 2008, diagonally scaled and held positive). What leaks biases all that is regressed on the code:
the row of a feature that is gone reads -0.04 of what it was instead of 0 on planted data, and -0.015 after four steps.

`reselected` chooses the active latents anew as well, for a source that the code was not read from: iterative hard
thresholding (Blumensath and Davies 2009), f <- the largest of f + D (x - f D) / (2 ||d||^2), as many as before.
"""

import torch
from torch import Tensor

from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.fit.gradients import view
from featurewatch.workers.crosscoder.kernels import kth_largest, row_dots
from featurewatch.workers.crosscoder.model import Crosscoder
from featurewatch.workers.crosscoder.preactivations import PreActivations, Scratch

STEPS = 4
"""Twice as many change the bias by a tenth."""
SELECTIONS = 2
"""A third one lowers the FVU of an edited model by 1%."""


def read_anew(
    residual: Tensor,
    code: Code,
    decoder: Tensor,
    steps: int = 1,
    valid: Tensor | None = None,
    most: Tensor | None = None,
) -> tuple[Code, Tensor]:
    """The code with activations read anew, and what it leaves: residuals [b, D] of `code` before, after.

    valid: [b, D] 1 where a position is known, 0 elsewhere; None: everywhere. Activations may become 0. most: [m] what
    a latent's activation must not exceed.
    """
    squares = decoder.square().sum(1).clamp_min(1e-30)[code.latents]
    limit = None if most is None else most[code.latents]
    rows = torch.arange(code.n, device=code.values.device).repeat_interleave(code.indptr.diff())
    for _ in range(steps):
        step = torch.maximum(row_dots(residual, decoder, code) / squares, -code.values)
        if limit is not None:
            step = torch.minimum(step, limit - code.values)
        written = Code(code.indptr, code.latents, step, code.m).decode(decoder)
        if valid is not None:
            written *= valid
        length = (residual * written).sum(1) / written.square().sum(1).clamp_min(1e-30)
        length.clamp_(0, 1)
        residual = torch.addcmul(residual, written, length.unsqueeze(1), value=-1)
        code = code._replace(values=torch.addcmul(code.values, step, length[rows]))
    return code, residual


@torch.no_grad()
def reselected(x: Tensor, code: Code, decoder: Tensor, most: Tensor, scratch: Scratch) -> tuple[Code, Tensor]:
    """The code of a source read from it alone: active latents and activations anew; and what it leaves, [b, D].

    x: [b, D] without the decoder's bias. code: [b, m] where to start, which says how many entries are active. most: [m]
    the largest activation of each latent: one that this source does not write has a row of noise, and would be given
    any activation.
    """
    norms = decoder.norm(dim=1).clamp_min(1e-15)
    unit = decoder / norms.unsqueeze(1)
    code, residual = read_anew(x - code.decode(decoder), code, decoder, most=most)
    for _ in range(SELECTIONS):
        code = _chosen_anew(residual, code, unit, norms, scratch)
        code = code._replace(values=torch.minimum(code.values, most[code.latents]))
        code, residual = read_anew(x - code.decode(decoder), code, decoder, STEPS, most=most)
    return code, residual


def _chosen_anew(residual: Tensor, code: Code, unit: Tensor, norms: Tensor, scratch: Scratch) -> Code:
    """As many entries as the code has: those of the largest f ||d|| after half a step along the residual. A whole step
    would give each of two overlapping latents all of what they share."""
    count, m = len(code.values), code.m
    if not count:
        return code
    rows = torch.arange(code.n, device=unit.device).repeat_interleave(code.indptr.diff())
    places = rows * m + code.latents
    scores = code.values * norms[code.latents] + row_dots(residual, unit, code) / 2
    pre = PreActivations(residual, unit / 2, torch.zeros_like(norms), scratch)
    guess = _weakest_chosen(pre, code, scores)
    for factor in (0.95, 0.8, 0.5, 0.0):  # what is surely too weak need not be looked at
        floor = max(guess * factor, 1e-12)
        candidates = pre.search(torch.full_like(norms, floor))
        at = torch.searchsorted(places, candidates.places).clamp_max(count - 1)
        fresh = places[at] != candidates.places
        if int((scores >= floor).sum() + fresh.sum()) >= count:
            break
    every = torch.cat([scores, candidates.values[fresh]])
    keep = every >= max(kth_largest(every, min(count, len(every))), 1e-12)
    kept, order = torch.cat([places, candidates.places[fresh]])[keep].sort()
    indptr = torch.searchsorted(kept, torch.arange(code.n + 1, device=kept.device) * m)
    latents = kept % m
    return Code(indptr, latents, every[keep][order] / norms[latents], m)


def _weakest_chosen(pre: PreActivations, code: Code, scores: Tensor) -> float:
    """About the smallest score that will be chosen, from a few positions."""
    few = code.rows(0, min(code.n, 256))
    if not len(few.values):
        return 0.0
    rows = torch.arange(few.n, device=scores.device).repeat_interleave(few.indptr.diff())
    sample = pre.head(few.n)
    sample[rows, few.latents] = scores[: len(rows)]
    return kth_largest(sample.flatten(), len(rows))


@torch.no_grad()
def pursued(model: Crosscoder, x: Tensor) -> Code:
    """The code of normalised activations [n, D] (NaN: a source that is not valid there) that a family keeps."""
    batch = view(model, x, None)
    code = model.encode(batch.inputs)
    residual = batch.x - model.reconstruct(code)
    if batch.valid is not None:
        residual *= batch.valid
    code, _ = read_anew(residual, code, model.rows(), STEPS, batch.valid)
    return without_zeros(code)


def without_zeros(code: Code) -> Code:
    """The code without entries that are 0."""
    kept = code.values > 0
    if bool(kept.all()):
        return code
    before = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])
    return Code(before[code.indptr.long()].to(code.indptr.dtype), code.latents[kept], code.values[kept], code.m)
