"""What a checkpoint writes where each feature fires, against a baseline: strengths, projections, their replicates.

For decoder rows D_c (checkpoint) and D_b (baseline, mapped by R into the checkpoint's space), both solved on the same
code, the errors e_g that fold g contributes to them, and h_g, the share of the feature's energy in fold g:

    <x, y>       = x . y - sum_g (1 - h_g) e_g^x . e_g^y          unbiased: noise does not count as strength
    <x, y>_-g    = (x - e_g^x) . (y - e_g^y) - sum_{f != g} (1 - h_f) e_f^x . e_f^y / (1 - h_g)^2    without fold g

e_g is what leaving fold g out changes, which exceeds the fold's own error by 1 / (1 - h_g); without fold g the errors
of the others weigh more by as much. This is the cross-fold product over all pairs of folds instead of one split
into halves. From it

    projection ratio = <D_c, D_b> / <D_b, D_b>     strength = sqrt <D_c, D_c>     orthogonal^2 = <c,c>/<b,b> - ratio^2

over hook points by sums of the products (root sum of squares).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from featurewatch.workers.crosscoder.preactivations import Scratch
from featurewatch.workers.crosscoder.pursuit import reselected
from featurewatch.workers.crosscoder.regress import LEAST_ROOM, Reader, Regression, Solution, spread_rows, take_rows

STAYS = 0.1
"""What speaks for a dimension's staying where it is, over what rows write in a dimension on average."""
LEFT_OUT = 0.01
"""Weight of rows that are left out of a Procrustes map: enough to pin dimensions that no other row reaches, which would
be mapped anywhere else."""


FVU_POSITIONS = 4096
"""Positions that an FVU is taken on, spread over all: what it is used for, a factor of two, needs no more."""


class Side(NamedTuple):
    """A checkpoint's half of a comparison: its activations (normalised) and the decoder solved on them."""

    read: Reader
    solution: Solution


class Products(NamedTuple):
    """Products of decoder rows, replicates in the first dimension: row 0 over all folds, row g + 1 without fold g.

    Each [K + 1, h, m] for h hook points.
    """

    now: Tensor
    """<D_c, D_c>"""
    before: Tensor
    """<D_b, D_b>"""
    both: Tensor
    """<D_c, R D_b>"""


def procrustes(now: Tensor, before: Tensor, weight: Tensor) -> Tensor | None:
    """The orthonormal map R with `now ~ before R` ([d_b, d_c]), or None where the bases agree already.

    now: [m, d_c], before: [m, d_b], weight: [m] >= 0. Bases agree where the median cosine of rows of positive
    weight is at least 0.5. Fitted in rounds that leave out the rows that fit worst: an edit must not be absorbed.

    A row counts by what is written of it on both sides: what one of the models hardly writes points anywhere there.
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
        # A fifth at most, and no row that fits like the others: it may be all that pins some dimensions.
        keep = fit >= torch.minimum(fit.quantile(0.2), 0.9 * fit.median())
    return rotation.float()


def shared_turn(now: Tensor, before: Tensor) -> Tensor:
    """The orthonormal map by which rows turned together: R [d_b, d_c] with `now ~ before R`, now [m, d_c], before
    [m, d_b].

    Where the bases disagree it is `procrustes`; where they agree, the map nearest to none (`STAYS`) that still finds a
    few dimensions that all rows see in another place.
    """
    found = procrustes(now, before, now.new_ones(len(now)))
    if found is not None:
        return found
    cross = (before.T @ now).double()
    cross.diagonal().add_(STAYS * float((now.norm() * before.norm()) / now.shape[1]) + 1e-30)
    left, _, right = torch.linalg.svd(cross)
    return torch.as_tensor(left @ right).float()


def map_rows(rows: Tensor, widths: list[int], maps: list[Tensor | None]) -> Tensor:
    """Rows [..., D_b] of sources beside each other, each mapped into the other checkpoint's space: [..., D_c]."""
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
    """Products of two checkpoints over the folds of the regression. One pass over the activations of each.

    widths: (d_b, d_c) of each hook point; maps: R of each hook point. fixed: bool [m], features whose row is that of
    `reference` ([m, D_b]), from an earlier checkpoint, and has no error in this regression. `before.solution` is the
    baseline's own all the same: what its residuals say of the other features is measured against what it does write.
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
    """FVU of each hook point [h]: the share of a checkpoint's variance that the dictionary leaves, the code read from
    that checkpoint alone, with as many active latents as the regression's code has.

    The cached code holds the noise, and the active latents, of the checkpoint that it was read from.
    """
    decoder, scratch = side.solution.decoder, Scratch()
    code = regression.code
    strongest = torch.zeros(code.m, device=decoder.device).scatter_reduce_(0, code.latents, code.values, "amax")
    left, total = (torch.zeros(len(widths), dtype=torch.float64) for _ in range(2))
    for rows in spread_rows(torch.cat(list(regression.blocks())).sort().values, most).split(4096):
        x = side.read(rows)
        _, residual = reselected(x - side.solution.bias, take_rows(code, rows), decoder, strongest, scratch)
        for sums, what in ((left, residual), (total, x)):
            sums.add_(torch.stack([part.square().sum() for part in what.split(widths, 1)]).double().cpu())
    return (left / total.clamp_min(1e-30)).float()


def replicates(plain: Tensor, cross: Tensor, own: Tensor, room: Tensor) -> Tensor:
    """[h, m], [K, h, m], [K, h, m], 1 - h_g [K, 1, m] -> [K + 1, h, m]: over all folds, then without each."""
    noise = own * room
    left = (noise.sum(0) - noise) / room.square()
    return torch.cat([(plain - noise.sum(0)).unsqueeze(0), plain - cross + own - left])


def jackknife_error(replicated: Tensor) -> Tensor:
    """Standard error of replicates [K + 1, ...], the first over all folds: [...]."""
    k = len(replicated) - 1
    return ((k - 1) / k * (replicated[1:] - replicated[1:].mean(0)).square().sum(0)).sqrt()


def over_noise(before: Tensor) -> Tensor:
    """A baseline's squared strength [K + 1, m] over its standard error: [m]."""
    return before[0] / jackknife_error(before).clamp_min(1e-9)


class Ratios(NamedTuple):
    """What the verdicts go by, replicates first: [K + 1, m] each summed over hook points, [K + 1, h, m] at each."""

    projection: Tensor
    """<D_c, R D_b> / <D_b, D_b>"""
    strength: Tensor
    """sqrt <D_c, D_c>"""
    strength_ratio: Tensor
    orthogonal: Tensor
    """||D_c - projection R D_b|| / ||D_b||"""
    cosine: Tensor


def ratios(now: Tensor, before: Tensor, both: Tensor) -> Ratios:
    """Ratios of products [K + 1, m] or [K + 1, h, m]. NaN where the baseline's strength is not over its own noise."""
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
