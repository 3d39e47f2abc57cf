"""Strengths and projections of decoder rows against a baseline, with jackknife replicates.

Let D_c (checkpoint) and D_b (baseline, mapped by R into the checkpoint's space) be decoder rows solved on the same
code, e_g the error that fold g contributes to a row, and h_g the share of the feature's energy in fold g:

    <x, y>       = x . y - sum_g (1 - h_g) e_g^x . e_g^y          unbiased: noise adds no strength
    <x, y>_-g    = (x - e_g^x) . (y - e_g^y) - sum_{f != g} (1 - h_f) e_f^x . e_f^y / (1 - h_g)^2    without fold g

e_g is the change from leaving fold g out, which exceeds the fold's own error by 1 / (1 - h_g); without fold g the
errors of the other folds grow by the same factor. This is the cross-fold product over all pairs of folds, rather than
over a single split into halves. The verdicts use

    projection ratio = <D_c, D_b> / <D_b, D_b>     strength = sqrt <D_c, D_c>     orthogonal^2 = <c,c>/<b,b> - ratio^2

summed over hook points (root sum of squares).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from featurewatch.workers.crosscoder.preactivations import Scratch
from featurewatch.workers.crosscoder.pursuit import reselected
from featurewatch.workers.crosscoder.regress import LEAST_ROOM, Reader, Regression, Solution, spread_rows, take_rows

STAYS = 0.1
"""Weight of the prior that a dimension stays in place, relative to what rows write in a dimension on average."""
LEFT_OUT = 0.01
"""Weight of outlier rows in a Procrustes map: enough to determine dimensions that no other row reaches."""
FVU_POSITIONS = 4096
"""Positions for an FVU, evenly spaced. It only has to be accurate to a factor of two."""


class Side(NamedTuple):
    """One side of a comparison: normalised activations, and the decoder solved on them."""

    read: Reader
    solution: Solution


class Products(NamedTuple):
    """Products of decoder rows, each [K + 1, h, m] for h hook points: row 0 over all folds, row g + 1 without fold
    g."""

    now: Tensor
    """<D_c, D_c>"""
    before: Tensor
    """<D_b, D_b>"""
    both: Tensor
    """<D_c, R D_b>"""


def procrustes(now: Tensor, before: Tensor, weight: Tensor) -> Tensor | None:
    """The orthonormal map R with `now ~ before R` ([d_b, d_c]), or None if the bases agree.

    now: [m, d_c], before: [m, d_b], weight: [m] >= 0. Bases agree if the median cosine of rows with positive weight is
    at least 0.5. Several rounds downweight the rows that fit worst, so that the map does not absorb an edit. A row is
    weighted by its norm on both sides, because a row that one model hardly writes has a random direction there.
    """
    use = weight > 0
    if now.shape[1] == before.shape[1]:
        cosine = torch.nn.functional.cosine_similarity(now[use], before[use], dim=1)
        if len(cosine) == 0 or float(cosine.median()) >= 0.5:
            return None
    unit_now = torch.nn.functional.normalize(now[use].double(), dim=1)
    unit_before = torch.nn.functional.normalize(before[use].double(), dim=1)
    w = (weight[use] * now[use].norm(dim=1) * before[use].norm(dim=1)).double().sqrt().unsqueeze(1)
    keep = torch.ones(len(w), dtype=torch.bool, device=w.device)
    rotation = torch.zeros(before.shape[1], now.shape[1], dtype=torch.float64, device=w.device)
    for _ in range(5):
        share = torch.where(keep, 1.0, LEFT_OUT).unsqueeze(1)
        left, _, right = torch.linalg.svd((share * w * unit_before).T @ (w * unit_now), full_matrices=False)
        rotation = left @ right
        fit = (unit_before @ rotation * unit_now).sum(1)
        # Drop at most a fifth, and no row that fits like the others: it may be all that determines some dimensions.
        keep = fit >= torch.minimum(fit.quantile(0.2), 0.9 * fit.median())
    return rotation.float()


def shared_turn(now: Tensor, before: Tensor) -> Tensor:
    """The rotation that all rows share: R [d_b, d_c] with `now ~ before R`, now [m, d_c], before [m, d_b].

    If the bases disagree it is `procrustes`. If they agree it stays close to the identity (`STAYS`), but still picks up
    a few dimensions that moved for all rows.
    """
    rotation = procrustes(now, before, now.new_ones(len(now)))
    if rotation is not None:
        return rotation
    cross = (before.T @ now).double()
    cross.diagonal().add_(STAYS * float((now.norm() * before.norm()) / now.shape[1]) + 1e-30)
    left, _, right = torch.linalg.svd(cross)
    return torch.as_tensor(left @ right).float()


def map_rows(rows: Tensor, widths: list[int], maps: list[Tensor | None]) -> Tensor:
    """Map rows [..., D_b] of concatenated sources into the other checkpoint's space: [..., D_c]."""
    parts = zip(rows.split(widths, -1), maps, strict=True)
    return torch.cat([part if r is None else part @ r for part, r in parts], -1)


def products(
    regression: Regression,
    now: Side,
    before: Side,
    widths: list[tuple[int, int]],
    maps: list[Tensor | None],
    fixed: Tensor | None = None,
    reference: Tensor | None = None,
) -> Products:
    """Products of two checkpoints over the folds of the regression, in one pass over the activations of each.

    widths: (d_b, d_c) of each hook point. maps: R of each hook point. fixed: bool [m], features whose baseline row is
    taken from `reference` ([m, D_b]), of an earlier checkpoint, and has no error in this regression. `before.solution`
    is still the baseline's own, since the residuals must reflect what the baseline writes.
    """
    h, m, folds = len(widths), regression.m, regression.n_folds
    split_b, split_c = [w[0] for w in widths], [w[1] for w in widths]

    def mapped(x: Tensor) -> list[Tensor]:
        return [x_s if r is None else x_s @ r for x_s, r in zip(x.split(split_b, 1), maps, strict=True)]

    decoder_b = before.solution.decoder
    if fixed is not None and reference is not None:
        decoder_b = torch.where(fixed.unsqueeze(1), reference, decoder_b)
    rows_c, rows_b = list(now.solution.decoder.split(split_c, 1)), mapped(decoder_b)
    shape = (folds, h, m)
    terms = {pair: (torch.zeros(shape), torch.zeros(shape)) for pair in ("cc", "bb", "cb")}
    influences_c = regression.influences(now.read, now.solution)
    influences_b = regression.influences(before.read, before.solution)
    for g, (errors, errors_b) in enumerate(zip(influences_c, influences_b, strict=True)):
        if fixed is not None:
            errors_b[fixed] = 0.0
        for s, (e_c, e_b) in enumerate(zip(errors.split(split_c, 1), mapped(errors_b), strict=True)):
            c, b = rows_c[s], rows_b[s]
            for pair, x, y, e_x, e_y in (("cc", c, c, e_c, e_c), ("bb", b, b, e_b, e_b), ("cb", c, b, e_c, e_b)):
                cross, own = terms[pair]
                cross[g, s] = ((x * e_y).sum(1) + (y * e_x).sum(1)).cpu()
                own[g, s] = (e_x * e_y).sum(1).cpu()
    plain = {
        "cc": torch.stack([(c * c).sum(1) for c in rows_c]),
        "bb": torch.stack([(b * b).sum(1) for b in rows_b]),
        "cb": torch.stack([(c * b).sum(1) for c, b in zip(rows_c, rows_b, strict=True)]),
    }
    room = (1 - regression.leverage).clamp_min(LEAST_ROOM).float().cpu().unsqueeze(1)
    result = {pair: replicates(plain[pair].cpu(), *terms[pair], room) for pair in terms}
    return Products(result["cc"], result["bb"], result["cb"])


def unexplained(regression: Regression, side: Side, widths: list[int], most: int = FVU_POSITIONS) -> Tensor:
    """FVU of each hook point, [h]: the fraction of variance that the dictionary leaves unexplained.

    The code is read from this checkpoint alone, with as many active latents as the regression's code, which carries the
    noise and the active latents of the checkpoint that it was read from.
    """
    decoder, scratch = side.solution.decoder, Scratch()
    code = regression.code
    strongest = torch.zeros(code.m, device=decoder.device).scatter_reduce_(0, code.latents, code.values, "amax")
    left, total = (torch.zeros(len(widths), dtype=torch.float64) for _ in range(2))
    for rows in spread_rows(torch.cat(list(regression.blocks())).sort().values, most).split(4096):
        x = side.read(rows)
        _, residual = reselected(x - side.solution.bias, take_rows(code, rows), decoder, strongest, scratch)
        for sums, values in ((left, residual), (total, x)):
            sums.add_(torch.stack([part.square().sum() for part in values.split(widths, 1)]).double().cpu())
    return (left / total.clamp_min(1e-30)).float()


def replicates(plain: Tensor, cross: Tensor, own: Tensor, room: Tensor) -> Tensor:
    """[h, m], [K, h, m], [K, h, m], 1 - h_g [K, 1, m] -> [K + 1, h, m]: over all folds, then without each fold."""
    noise = own * room
    left = (noise.sum(0) - noise) / room.square()
    return torch.cat([(plain - noise.sum(0)).unsqueeze(0), plain - cross + own - left])


def jackknife_error(replicated: Tensor) -> Tensor:
    """Standard error of replicates [K + 1, ...], of which the first is over all folds: [...]."""
    k = len(replicated) - 1
    return ((k - 1) / k * (replicated[1:] - replicated[1:].mean(0)).square().sum(0)).sqrt()


def over_noise(before: Tensor) -> Tensor:
    """Squared strength of a baseline [K + 1, m] over its standard error: [m]."""
    return before[0] / jackknife_error(before).clamp_min(1e-9)


class Ratios(NamedTuple):
    """The figures behind verdicts: each [K + 1, m] summed over hook points, or [K + 1, h, m] per hook point."""

    projection: Tensor
    """<D_c, R D_b> / <D_b, D_b>"""
    strength: Tensor
    """sqrt <D_c, D_c>"""
    strength_ratio: Tensor
    orthogonal: Tensor
    """||D_c - projection R D_b|| / ||D_b||"""
    cosine: Tensor


def ratios(now: Tensor, before: Tensor, both: Tensor) -> Ratios:
    """Ratios of products [K + 1, m] or [K + 1, h, m]. NaN where the baseline's squared strength is not positive."""
    base = before.where(before > 0, torch.nan)
    projection = both / base
    strength = now.clamp_min(0).sqrt()
    return Ratios(
        projection=projection,
        strength=strength,
        strength_ratio=strength / base.sqrt(),
        orthogonal=(now / base - projection.square()).clamp_min(0).sqrt(),
        cosine=(both / (now.clamp_min(1e-30) * base).sqrt()).clamp(-1, 1),
    )
