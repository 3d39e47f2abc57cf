"""Methods from the literature on a planted lineage, with the same latents, active latents, steps and scores.

Each step, parent -> checkpoint, is judged separately with its own dictionary. Open choices favour the method:

- attention sinks (norms over four medians) are masked and every source is normalised, so scale and offset do not count
  as changes;
- planted features are matched to latents again at each step, by their magnitudes in either checkpoint, so identity
  across steps costs nothing;
- a feature that neither checkpoint writes has no latent, and counts as correctly absent;
- a latent that fires on fewer than 30 positions is not judged, as in the product;
- a latent whose two decoder rows have similar lengths (within a factor of 2) but a cosine under 0.5 is `relocated`. If
  the bases differ, rows are compared after the product's orthogonal map (`workers.verdicts.measure.procrustes`);
- a weakened or strengthened feature counts as `present`.

No method reports that a feature was *replaced*; `macro_f1_simple` ignores that distinction (and relocation). None says
where a feature is active.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.planted_data import Lineage
from benchmarks.planted_score import Matching, Verdicts, correlations, match, score
from benchmarks.planted_shape import (
    ABSENT,
    AMPLIFIED,
    AMPLIFIED_ABOVE,
    EMERGED,
    PRESENT,
    RELOCATED,
    SUPPRESSED,
    SUPPRESSED_BELOW,
    UNBORN,
)
from featurewatch.workers.crosscoder.config import FitConfig, Layout
from featurewatch.workers.crosscoder.fit import fit
from featurewatch.workers.crosscoder.model import Crosscoder, Moments
from featurewatch.workers.verdicts.measure import procrustes

MOST_NORM = 4.0
EXCLUSIVE = 0.1
"""Relative decoder norms under it, and over 1 less it, are exclusive to one side (Lindsey et al. 2024)."""
NO_ERROR = 0.2
"""nu_e under it: the other side's error holds nothing of the latent (Minder et al. 2025)."""
SAME_CORRELATION, SAME_COSINE = 0.5, 0.7
"""Two latents of independent dictionaries are one where codes, or decoder rows, agree by so much."""
TURNED = 0.5
LEAST_FIRINGS = 30


class Step(NamedTuple):
    """What a method says of one step: statuses of its latents, and their codes."""

    status: list[str]
    code: sparse.csr_array
    """[n_positions, len(status)]"""


class Fitted(NamedTuple):
    """A dictionary of one checkpoint or of two beside each other."""

    model: Crosscoder
    code: sparse.csr_array
    """[n_positions, m]; empty at positions that are masked"""
    x: Tensor
    """[rows, D] normalised activations of the positions that are not masked"""
    rows: np.ndarray
    """int64: those positions"""


def baselines(
    lineage: Lineage, options: Mapping[str, Any], log: Callable[[str], None] = lambda line: None
) -> dict[str, dict[str, Any]]:
    """Scores of every method by name; `options` are those of the family's crosscoder (n_features, k, steps, ...)."""
    config, steps = FitConfig(**options), {}
    sources = {c: lineage.activations(c) for c in range(1, lineage.shape.n_checkpoints + 1)}
    began = time.monotonic()
    alone = {c: fitted([x], config) for c, x in sources.items()}
    log(f"independent dictionaries: {time.monotonic() - began:.0f} s")
    for checkpoint in range(2, lineage.shape.n_checkpoints + 1):
        began = time.monotonic()
        both = fitted([sources[checkpoint - 1], sources[checkpoint]], config)
        log(f"v{checkpoint}: crosscoder of two in {time.monotonic() - began:.0f} s")
        for name, method in METHODS.items():
            steps[name, checkpoint] = method(both, alone[checkpoint - 1], alone[checkpoint])
    return {name: _scored(lineage, {c: step for (n, c), step in steps.items() if n == name}) for name in METHODS}


def fitted(sources: list[np.ndarray], config: FitConfig) -> Fitted:
    """A crosscoder on checkpoints [n, d_s] side by side, or, of one, a sparse autoencoder."""
    valid = np.ones(len(sources[0]), dtype=bool)
    for source in sources:
        norms = np.linalg.norm(source, axis=1)
        valid &= norms <= MOST_NORM * np.median(norms)
    rows = np.flatnonzero(valid)
    widths = [source.shape[1] for source in sources]
    raw = torch.from_numpy(np.concatenate([source[rows] for source in sources], axis=1))
    moments = Moments(widths)
    moments.add(raw)
    x = moments.normaliser()(raw)
    layout = Layout(tuple(widths), tuple(range(len(widths))))
    model = fit(lambda batch: x[batch], len(x), layout, config).model
    code = model.encode(x).to_scipy()
    place = sparse.csr_array((np.ones(len(rows), np.float32), (rows, np.arange(len(rows)))), (len(valid), len(rows)))
    return Fitted(model, sparse.csr_array(place @ code), x, rows)


def norm_bins(both: Fitted, parent: Fitted, now: Fitted) -> Step:
    """Relative decoder norm ||d_now|| / (||d_now|| + ||d_parent||) in bins (Lindsey et al. 2024).

    Under 0.1 the latent is exclusive to the parent, `absent`; over 0.9 exclusive to the checkpoint, `emerged`. Between
    them the quotient of the norms is the ratio: under 0.5 `suppressed`, over 2 `amplified`.
    """
    before, after = both.model.norms_by_source().numpy().T
    relative = after / np.maximum(after + before, 1e-12)
    ratio = after / np.maximum(before, 1e-12)
    status = _statuses(ratio, _cosines(both))
    status[relative < EXCLUSIVE], status[relative > 1 - EXCLUSIVE] = ABSENT, EMERGED
    return Step(status.tolist(), both.code)


def latent_scaling(both: Fitted, parent: Fitted, now: Fitted) -> Step:
    """nu_r and nu_e of latent scaling (Minder et al. 2025) on the crosscoder of `norm_bins`.

    beta_j(y) = argmin_beta sum_p |beta f_j(p) d_j - y(p)|^2 = <sum_p f_j(p) y(p), d_j> / (|d_j|^2 sum_p f_j(p)^2).
    d_j is the latent's decoder row on the side s where it is longer, t the other side. nu_r is beta of t's
    reconstruction (its mean taken out) over beta of s's; nu_e is beta of t's error over beta of s's error with the
    latent's own part added. Where both are small (nu_r under 0.1, nu_e under 0.2) the latent is exclusive to s:
    `absent` or `emerged`. Otherwise nu_r, as a ratio of the checkpoint to its parent, is judged
    by the bands.
    """
    model, code = both.model, both.code[both.rows]
    rows = model.rows()
    energy = np.maximum(np.asarray(code.multiply(code).sum(0)).ravel(), 1e-12)
    written = code @ rows.numpy()
    pulls = {"r": code.T @ (written - written.mean(0))}
    pulls["e"] = code.T @ (both.x.numpy() - model.decoder_bias.numpy() - written)
    norms = model.norms_by_source().numpy()
    longer = norms.argmax(1)
    nu = {"r": np.zeros(model.m), "e": np.zeros(model.m)}
    for s in (0, 1):
        own, other = (rows.split(list(model.layout.widths), 1)[side] for side in (s, 1 - s))
        mapped = _map(own, other)
        use, d = longer == s, own.numpy()
        scale = np.maximum((d**2).sum(1) * energy, 1e-12)
        for kind, pull in pulls.items():
            sides = np.split(pull, [model.layout.widths[0]], axis=1)
            strong = (sides[s] * d).sum(1) / scale + (kind == "e")
            weak = ((sides[1 - s] if mapped is None else sides[1 - s] @ mapped.numpy()) * d).sum(1) / scale
            nu[kind][use] = (weak / np.maximum(strong, 1e-6))[use]
    ratio = np.where(longer == 0, nu["r"], 1 / np.maximum(nu["r"], 1e-6))
    # One that is as long on both sides, along two directions, has a small nu as well.
    cosines = _cosines(both)
    status = _statuses(ratio, cosines)
    exclusive = (nu["r"] < EXCLUSIVE) & (np.abs(nu["e"]) < NO_ERROR) & (cosines >= TURNED)
    status[exclusive & (longer == 0)], status[exclusive & (longer == 1)] = ABSENT, EMERGED
    return Step(status.tolist(), both.code)


def independent_by_code(both: Fitted, parent: Fitted, now: Fitted) -> Step:
    """A sparse autoencoder for each checkpoint; latents are paired by the correlation of their codes (Hungarian).

    A pair is one feature where the correlation is 0.5 at least. What is left over of the parent's is `absent`, of the
    checkpoint's `emerged`. A pair's ratio is that of decoder norm times mean activation, over the median of all pairs.
    """
    return _paired(parent, now, correlations(parent.code, now.code), SAME_CORRELATION)


def independent_by_decoder(both: Fitted, parent: Fitted, now: Fitted) -> Step:
    """As `independent_by_code`, paired by the cosine of decoder rows, 0.7 at least, in the bases as they are."""
    if parent.model.layout != now.model.layout:
        return _paired(parent, now, np.zeros((parent.model.m, now.model.m)), SAME_COSINE)
    units = [torch.nn.functional.normalize(side.model.rows(), dim=1).numpy() for side in (parent, now)]
    return _paired(parent, now, units[0] @ units[1].T, SAME_COSINE)


METHODS: dict[str, Callable[[Fitted, Fitted, Fitted], Step]] = {
    "norm bins": norm_bins,
    "latent scaling": latent_scaling,
    "independent SAEs, by code": independent_by_code,
    "independent SAEs, by decoder": independent_by_decoder,
}
"""(crosscoder of both, autoencoder of the parent, of the checkpoint) -> what it says"""


def _paired(parent: Fitted, now: Fitted, table: np.ndarray, least: float) -> Step:
    fires = [np.diff(side.code.tocsc().indptr) > 0 for side in (parent, now)]
    old, new = linear_sum_assignment(table, maximize=True)
    same = (table[old, new] >= least) & fires[0][old] & fires[1][new]
    old, new = old[same], new[same]
    sizes = [
        np.asarray(side.code.mean(0)).ravel() * torch.linalg.vector_norm(side.model.rows(), dim=1).numpy()
        for side in (parent, now)
    ]
    ratio = sizes[1][new] / np.maximum(sizes[0][old], 1e-12)
    rows = parent.model.rows()[old], now.model.rows()[new]
    status = _statuses(ratio / (np.median(ratio) if len(ratio) else 1.0), _cosine(*rows))
    gone = np.setdiff1d(np.flatnonzero(fires[0]), old)
    born = np.setdiff1d(np.flatnonzero(fires[1]), new)
    code = sparse.hstack([parent.code[:, old], parent.code[:, gone], now.code[:, born]])
    return Step(status.tolist() + [ABSENT] * len(gone) + [EMERGED] * len(born), sparse.csr_array(code))


def _statuses(ratio: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    """Statuses [m] (objects) of latents that both sides have."""
    status = np.full(len(ratio), PRESENT, dtype=object)
    status[ratio < SUPPRESSED_BELOW], status[ratio > AMPLIFIED_ABOVE] = SUPPRESSED, AMPLIFIED
    status[cosines < TURNED] = RELOCATED
    return status


def _cosines(both: Fitted) -> np.ndarray:
    """Cosine of each latent's two decoder rows, [m]; 1 where one is over twice as long as the other."""
    norms = both.model.norms_by_source().numpy()
    alike = norms.min(1) >= SUPPRESSED_BELOW * norms.max(1)
    return np.where(alike, _cosine(*both.model.rows().split(list(both.model.layout.widths), 1)), 1.0)


def _cosine(before: Tensor, now: Tensor) -> np.ndarray:
    mapped = _map(now, before)
    return cosine_similarity(before if mapped is None else before @ mapped, now, dim=1).numpy()


def _map(now: Tensor, before: Tensor) -> Tensor | None:
    """R with now ~ before R, from the rows that both sides write; None where the bases agree."""
    weight = before.norm(dim=1) * now.norm(dim=1)
    return procrustes(now, before, weight * (weight > 0.1 * weight.median())) if len(weight) else None


def _scored(lineage: Lineage, steps: Mapping[int, Step]) -> dict[str, Any]:
    """Scores of a method through a matching of its own at every step."""
    matchings: dict[int, Matching] = {}
    verdicts: dict[int, dict[int, str]] = {}
    for checkpoint, step in steps.items():
        either = lineage.codes_at(checkpoint - 1).maximum(lineage.codes_at(checkpoint))
        found = match(sparse.csr_array(either), step.code, range(len(step.status)))
        often = np.bincount(step.code.indices, minlength=len(step.status)) >= LEAST_FIRINGS
        said = {n: status if often[n] else "indeterminate" for n, status in enumerate(step.status)}
        neither = (lineage.levels(checkpoint) == 0) & (lineage.levels(checkpoint - 1) == 0)
        born = np.array(lineage.truth(checkpoint).against_parent) != UNBORN
        for number, feature in enumerate(np.flatnonzero((found.latent < 0) & neither & born).tolist()):
            found.latent[feature] = len(step.status) + number
            said[len(step.status) + number] = ABSENT
        matchings[checkpoint], verdicts[checkpoint] = found, said
    verdict_table: Verdicts = verdicts
    return score(lineage, verdict_table, matchings, graded=False)
