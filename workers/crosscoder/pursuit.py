"""Gradient pursuit: refine the activations so that the decoder explains each position best.

    f <- f + c max(D (x - f D) / ||d||^2, -f) on the active latents,     c in [0, 1] the best length at each position

A linear encoder reads latent i as f_i = sum_j a_j e_i . d_j, so other active latents with overlapping directions leak
into it. These steps remove the leak among the active latents (gradient pursuit, Blumensath and Davies 2008, with
diagonal scaling and a positivity constraint). The leak biases every regression on the code: on planted data the row of
an absent feature has a ratio of -0.04 instead of 0, and -0.015 after four steps.

`reselected` also selects the active latents again, for a source that the code was not read from, by iterative hard
thresholding (Blumensath and Davies 2009): f <- the largest of f + D (x - f D) / (2 ||d||^2), as many as before.
"""

import torch
from torch import Tensor

from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.fit.gradients import view
from featurewatch.workers.crosscoder.kernels import kth_largest, row_dots
from featurewatch.workers.crosscoder.model import Crosscoder
from featurewatch.workers.crosscoder.preactivations import PreActivations, Scratch

STEPS = 4
"""Doubling the number changes the bias by a tenth."""
SELECTIONS = 2
"""A third would lower the FVU of an edited model by 1%."""


def read_anew(
    residual: Tensor,
    code: Code,
    decoder: Tensor,
    steps: int = 1,
    valid: Tensor | None = None,
    most: Tensor | None = None,
) -> tuple[Code, Tensor]:
    """Refine the activations of a code; returns the new code and its residual [b, D].

    residual: [b, D] of `code`. valid: [b, D] 1 where a position is known, 0 elsewhere; None if known everywhere.
    most: [m] upper bounds on the activations. Activations may become 0.
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
    """The code of a single source, with latents selected again and activations refined; and its residual [b, D].

    x: [b, D] without the decoder's bias. code: [b, m] to start from; its number of entries is kept. most: [m] upper
    bounds on the activations: the decoder row of a latent that this source does not write is noise, and would otherwise
    get any activation.
    """
    norms = decoder.norm(dim=1).clamp_min(1e-15)
    unit = decoder / norms.unsqueeze(1)
    code, residual = read_anew(x - code.decode(decoder), code, decoder, most=most)
    for _ in range(SELECTIONS):
        code = _select_again(residual, code, unit, norms, scratch)
        code = code._replace(values=torch.minimum(code.values, most[code.latents]))
        code, residual = read_anew(x - code.decode(decoder), code, decoder, STEPS, most=most)
    return code, residual


def _select_again(residual: Tensor, code: Code, unit: Tensor, norms: Tensor, scratch: Scratch) -> Code:
    """The entries with the largest f ||d|| after half a step along the residual, as many as the code has.

    A whole step would give each of two overlapping latents everything that they share.
    """
    count, m = len(code.values), code.m
    if not count:
        return code
    rows = torch.arange(code.n, device=unit.device).repeat_interleave(code.indptr.diff())
    places = rows * m + code.latents
    scores = code.values * norms[code.latents] + row_dots(residual, unit, code) / 2
    pre = PreActivations(residual, unit / 2, torch.zeros_like(norms), scratch)
    guess = _estimate_cut(pre, code, scores)
    for factor in (0.95, 0.8, 0.5, 0.0):  # skip entries that are certainly too weak
        floor = max(guess * factor, 1e-12)
        candidates = pre.search(torch.full_like(norms, floor))
        at = torch.searchsorted(places, candidates.places).clamp_max(count - 1)
        fresh = places[at] != candidates.places
        if int((scores >= floor).sum() + fresh.sum()) >= count:
            break
    all_scores = torch.cat([scores, candidates.values[fresh]])
    keep = all_scores >= max(kth_largest(all_scores, min(count, len(all_scores))), 1e-12)
    selected, order = torch.cat([places, candidates.places[fresh]])[keep].sort()
    indptr = torch.searchsorted(selected, torch.arange(code.n + 1, device=selected.device) * m)
    latents = selected % m
    return Code(indptr, latents, all_scores[keep][order] / norms[latents], m)


def _estimate_cut(pre: PreActivations, code: Code, scores: Tensor) -> float:
    """Estimate of the smallest selected score, from a few positions."""
    head = code.rows(0, min(code.n, 256))
    if not len(head.values):
        return 0.0
    rows = torch.arange(head.n, device=scores.device).repeat_interleave(head.indptr.diff())
    sample = pre.head(head.n)
    sample[rows, head.latents] = scores[: len(rows)]
    return kth_largest(sample.flatten(), len(rows))


@torch.no_grad()
def pursued(model: Crosscoder, x: Tensor) -> Code:
    """The code that a family stores: refined, of normalised activations [n, D] with NaN where a source is invalid."""
    batch = view(model, x, None)
    code = model.encode(batch.inputs)
    residual = batch.x - model.reconstruct(code)
    if batch.valid is not None:
        residual *= batch.valid
    code, _ = read_anew(residual, code, model.rows(), STEPS, batch.valid)
    return without_zeros(code)


def without_zeros(code: Code) -> Code:
    """The code without zero entries."""
    active = code.values > 0
    if bool(active.all()):
        return code
    before = torch.cat([active.new_zeros(1, dtype=torch.int64), active.cumsum(0)])
    return Code(before[code.indptr.long()].to(code.indptr.dtype), code.latents[active], code.values[active], code.m)
