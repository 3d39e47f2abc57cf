"""The rule that turns measurements into verdicts. Pure numpy, shared by the workers and the API.

The projection ratio decides first: how much of the feature's own direction is still written where the feature fires.
Intervals are jackknife intervals over folds of documents; q-values are Benjamini-Hochberg over the features of the
comparison. docs/verdicts.md describes the rule.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from featurewatch.service.verdicts.activity import Comparison
from featurewatch.service.verdicts.arrays import among, by_column
from featurewatch.service.verdicts.intervals import error_of, t_of
from featurewatch.service.verdicts.places import Placement, place
from featurewatch.service.verdicts.policy import Policy
from featurewatch.service.verdicts.significance import benjamini_hochberg, spending
from featurewatch.service.verdicts.statuses import BY_CODE, GONE, N_CODES, Places, Status

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


BASELINE_Z = 2.0
"""Standard errors by which a baseline strength must exceed zero, or there is no ratio to it."""
LARGEST = 1e6
"""Ratios and errors from here on mean that the baseline strength is negligible."""
SAMPLED = 16
"""One in this many values is in a quantile's sample."""
BLOCK = 8192
"""Features whose replicates are computed at a time: their data stay in the processor's cache."""
NO_PLACES = -1
_CHANGED = np.zeros(N_CODES, dtype=bool)
_CHANGED[[status.code for status in Status if status.row.changed]] = True
"""[code] whether a status is a change"""
_PARTLY = [status.code for status in (Status.SUPPRESSED, Status.INDETERMINATE)]
_LESS = [*_PARTLY, *(status.code for status in (*GONE, Status.RELOCATED))]
"""Statuses of features that are written less, or not surely enough, where they used to be active"""
_NOT_PLACED = [status.code for status in (*GONE, Status.EMERGED, Status.RELOCATED)]
"""Statuses of features that one of the checkpoints does not have along the direction that own codes are read with"""
_STILL = [Places.SAME.code, Places.BROADENED.code]
"""Places of features that are active where they used to be"""


class Estimates(NamedTuple):
    """What the rule needs from replicates, [m] each."""

    value: Floats
    error: Floats
    """jackknife standard error"""
    sized: Bools
    """whether both are finite and under LARGEST; division by almost nothing says nothing"""
    folds: int


@dataclass
class Evidence:
    """Measurements of m features in a checkpoint against a baseline; replicates [K + 1, m], the estimate first."""

    projection: Floats
    strength_ratio: Floats
    orthogonal: Floats
    firings: NDArray[np.int64]
    documents: NDArray[np.int64]
    """[m] documents that the feature fires in"""
    readability: Floats
    """[m] in the checkpoint; NaN where not measured"""
    readability_before: Floats
    baseline_z: Floats
    """[m] strength^2 at the baseline over its standard error"""
    there_before: Bools
    """[m] False: gone at the baseline, and the ratios are against where the feature last was"""
    born_here: Bools
    """[m] new in this checkpoint and not at the baseline"""
    successors: dict[int, list["Successor"]] = field(default_factory=dict)
    """Column of a weakened feature -> the features that are active in its place"""
    comparison: int = 1
    """Position in the lineage: 1 is the second checkpoint against the first. Comparisons on request are 1."""
    activity: Comparison | None = None
    """Where the features are active; None if own codes were not read"""

    def estimates(self) -> tuple[Estimates, Estimates]:
        """Estimates of the projection and strength ratios."""
        return estimates(self.projection), estimates(self.strength_ratio)

    def turned(self, columns: NDArray[np.int64]) -> Floats:
        """Replicates of the orthogonal ratio of a few features, [K + 1, j]."""
        return self.orthogonal[:, columns]


class Successor(NamedTuple):
    column: int
    kind: str
    """replaced, split (one of several) or merged (it replaces several)"""
    cofiring: float
    """Share of the predecessor's activation on positions where this feature is active"""
    strength: float
    """What this feature writes there, divided by what the predecessor wrote; a norm, not its square"""


@dataclass
class Judgement:
    """Statuses and figures, [m] each; NaN if undefined."""

    codes: NDArray[np.int8]
    """of the statuses"""
    change: Floats
    projection_ratio: Floats
    projection_ratio_lo: Floats
    projection_ratio_hi: Floats
    strength_ratio: Floats
    strength_ratio_lo: Floats
    strength_ratio_hi: Floats
    orthogonal_ratio: Floats
    q_value: Floats
    minimum_detectable_ratio: Floats
    weakened: Bools
    """Significantly under `suppressed_below`, absent features included"""
    strengthened: Bools
    size_factor: float
    strength_size: float
    """The size factor of the strength ratios"""
    level: float
    """Largest q-value that is significant"""
    places: NDArray[np.int8]
    """codes of `Places`, NO_PLACES where there are none to compare"""
    placement: Placement | None

    @property
    def status(self) -> list[Status]:
        """The statuses themselves."""
        return [BY_CODE[code] for code in self.codes.tolist()]


def estimates(replicates: NDArray[np.floating]) -> Estimates:
    """Estimates from replicates [K + 1, m]: row 0 is the estimate, row g + 1 leaves fold g out."""
    error = np.empty(replicates.shape[1], dtype=np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # non-finite values
        for start in range(0, len(error), BLOCK):
            error[start : start + BLOCK] = standard_error(replicates[:, start : start + BLOCK])
    return _sized(replicates[0], error, len(replicates) - 1)


def estimates_of_ratios(over: Floats, under: Floats, numbers: NDArray[np.int64]) -> Estimates:
    """The same for the ratios of two stored arrays of replicates, [K + 1, l] by number, of the features `numbers` [m].

    Ratios are computed in blocks, and features are selected last: selecting first would copy all replicates.
    """
    rows, length = min(len(over), len(under)), min(over.shape[1], under.shape[1])
    value, error = np.empty(length, dtype=np.float32), np.empty(length, dtype=np.float32)
    ratios = np.empty((rows, min(BLOCK, length)), dtype=np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # non-finite values
        for start in range(0, length, BLOCK):
            block = slice(start, min(start + BLOCK, length))
            part = np.divide(over[:rows, block], under[:rows, block], out=ratios[:, : block.stop - start])
            value[block] = part[0]
            np.subtract(part[1:], part[0], out=part[1:])
            error[block] = _jackknife(part[1:])
    return _sized(by_column(value, numbers), by_column(error, numbers), rows - 1)


def _sized(value: Floats, error: Floats, folds: int) -> Estimates:
    with np.errstate(invalid="ignore"):
        return Estimates(value, error, (np.abs(value) < LARGEST) & (error < LARGEST), folds)


def standard_error(replicates: NDArray[np.floating]) -> Floats:
    """Jackknife standard error of replicates [K + 1, ...]: row 0 is the estimate, row g + 1 leaves fold g out."""
    # Relative to the estimate, which is close: single precision suffices, and the square of their mean is small.
    return _jackknife(replicates[1:] - replicates[0])


def _jackknife(off: NDArray[np.floating]) -> Floats:
    """Standard error of replicates given as differences from the estimate, [K, ...]."""
    k = len(off)
    squares = np.einsum("k...,k...->...", off, off) - np.add.reduce(off) ** 2 / k
    return np.sqrt((k - 1) / k * np.maximum(squares, 0)).astype(np.float32)


def quantile(values: NDArray[np.floating], share: float) -> float:
    """`np.quantile` for finite values. Sorting or partitioning all of them is slow on some processors.

    A sorted sample gives likely bounds, and only the values between them are sorted (Floyd and Rivest 1975).
    """
    rank, rest = divmod(share * (len(values) - 1), 1)
    below, near = int(rank), values
    if len(values) > SAMPLED * SAMPLED:
        sample = np.sort(values[::SAMPLED])
        place, reach = share * (len(sample) - 1), 2 * math.sqrt(len(sample))  # at least four standard errors
        first, last = sample[max(0, int(place - reach))], sample[min(len(sample) - 1, int(place + reach) + 1)]
        between, under = values[(values >= first) & (values <= last)], int(np.count_nonzero(values < first))
        if under <= below < under + len(between) - 1:
            below, near = below - under, between
    ordered = np.sort(near)
    low, high = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    return float(low + rest * (high - low))


def weighted_median(values: Floats, weights: NDArray[np.float64], usual: float) -> float:
    """The value at which the cumulative weight reaches one half. values, weights: [n] each.

    usual: typical size of the values. They are binned in parts of it, and only the bin with the median is sorted.
    """
    parts = 1024
    scale = np.float32(parts / 4 / max(usual, 1e-30))
    part = np.clip(values * scale + parts / 2, 0, parts - 1).astype(np.intp)
    up_to = np.cumsum(np.bincount(part, weights, parts))
    # Two neighbours if the half falls between them, as in a median of equal weights.
    half = up_to[-1] * np.array([0.5 - 1e-9, 0.5 + 1e-9])
    low, high = np.searchsorted(up_to, half)
    near = np.flatnonzero((part >= low) & (part <= high))
    near = near[np.argsort(values[near])]
    share = np.cumsum(weights[near]) + (up_to[low - 1] if low else 0.0)
    first, last = near[np.minimum(np.searchsorted(share, half), len(near) - 1)]
    return float(values[first] + values[last]) / 2


def judge(evidence: Evidence, policy: Policy) -> Judgement:
    """Judge every feature of one comparison."""
    e, (projected, strengths) = evidence, evidence.estimates()
    t = t_of(projected.folds, policy)
    enough = (e.firings >= policy.min_firings) & (e.documents >= policy.min_documents)
    solid = enough & (e.baseline_z >= BASELINE_Z) & projected.sized & ~e.born_here
    typical = solid & e.there_before
    projected, strengths = _of(solid, projected), _of(solid, strengths)
    size = _size(projected, typical, policy)
    ratio = projected.value / size
    ratio_se = error_of(ratio, projected.error / size, policy)
    strength_size = _size(strengths, typical, policy)
    strength, strength_se = strengths.value / strength_size, strengths.error / strength_size
    lo, hi = ratio - t * ratio_se, ratio + t * ratio_se

    level = policy.fdr * (spending(e.comparison) if policy.sequential else 1.0)
    q, low, high = _significance(ratio, ratio_se, solid, projected.folds, policy, level)
    readable = _readable(e, policy)
    weakened = solid & low & e.there_before
    absent = solid & (hi < policy.absent_below)
    still_gone = solid & ~e.there_before & (lo < policy.absent_below)
    strengthened = solid & high & e.there_before
    back = solid & ~e.there_before & (lo >= policy.suppressed_below)
    orthogonal = np.where(solid & (np.abs(e.orthogonal[0]) < LARGEST), e.orthogonal[0], np.float32(np.nan)) / abs(size)
    usual = _usual(orthogonal[typical & ~low & ~high])
    moved = _moved(e, orthogonal, weakened & readable, abs(size), usual, t, policy.suppressed_below)
    carried = [column for column, successors in e.successors.items() if _carried(successors, policy)]
    replaced = weakened & among(np.arange(len(ratio)), carried)

    status = np.full(len(ratio), Status.INDETERMINATE.code, dtype=np.int8)
    inside = (lo >= policy.suppressed_below) & (hi <= policy.amplified_above)
    status[solid & e.there_before & inside & readable] = Status.PRESENT.code
    status[weakened] = Status.SUPPRESSED.code
    status[solid & ~e.there_before & ~still_gone] = Status.SUPPRESSED.code
    status[strengthened] = Status.AMPLIFIED.code
    status[(weakened & absent) | still_gone] = Status.ABSENT.code
    status[replaced] = Status.REPLACED.code
    status[moved] = Status.RELOCATED.code
    placement = _placed(e, status, policy, level)
    status[e.born_here | back] = Status.EMERGED.code
    return Judgement(
        codes=status,
        projection_ratio=_where(solid, ratio),
        projection_ratio_lo=_where(solid, lo),
        projection_ratio_hi=_where(solid, hi),
        strength_ratio=_where(solid, strength),
        strength_ratio_lo=_where(solid, np.maximum(strength - t * strength_se, 0)),
        strength_ratio_hi=_where(solid, strength + t * strength_se),
        orthogonal_ratio=_where(solid, orthogonal),
        q_value=q.astype(np.float32),
        change=_change(ratio, e.born_here, _CHANGED[status] & ~still_gone),
        minimum_detectable_ratio=_where(solid & (ratio_se > 0) & (2 * t * ratio_se < 1), 1 - 2 * t * ratio_se),
        weakened=weakened,
        strengthened=strengthened,
        size_factor=float(size),
        strength_size=float(strength_size),
        level=level,
        places=_places(placement, status, e.there_before),
        placement=placement,
    )


def _placed(e: Evidence, status: NDArray[np.int8], policy: Policy, level: float) -> Placement | None:
    """Where features are active. Corrects `status`: what is active elsewhere, or in fewer places, was not suppressed.

    The projection ratio is measured where a feature used to be active. A feature that moved, or that is active at full
    strength in a third of its places, writes little there.
    """
    if e.activity is None:
        return None
    placement, there_before = place(e.activity, policy, level), e.there_before
    displaced = np.isin(status, _LESS) & there_before & (placement.codes == Places.DISPLACED.code)
    # Where next to nothing is written at the old positions, what is left of the own code belongs to neighbours.
    narrowed = np.isin(status, _PARTLY) & there_before & (placement.codes == Places.NARROWED.code)
    usual = (placement.amplitude >= policy.suppressed_below) & (placement.amplitude <= policy.amplified_above)
    status[(displaced & usual) | narrowed] = Status.PRESENT.code
    status[displaced & (placement.amplitude < policy.suppressed_below)] = Status.SUPPRESSED.code
    status[displaced & (placement.amplitude > policy.amplified_above)] = Status.AMPLIFIED.code
    # Still active where it was, although next to nothing is written along the old direction: not absent.
    still = there_before & np.isin(placement.codes, _STILL)
    absent = status == Status.ABSENT.code
    status[still & absent] = Status.SUPPRESSED.code
    # Active elsewhere, but in too few documents to be sure that it is displaced.
    elsewhere = there_before & (placement.gained_share > policy.places_floor)
    status[elsewhere & ~still & absent & (placement.codes == Places.INDETERMINATE.code)] = Status.INDETERMINATE.code
    return placement


def _places(placement: Placement | None, status: NDArray[np.int8], there_before: Bools) -> NDArray[np.int8]:
    """[m] places of the features that both checkpoints have."""
    if placement is None:
        return np.full(len(status), NO_PLACES, dtype=np.int8)
    return np.where(there_before & ~np.isin(status, _NOT_PLACED), placement.codes, np.int8(NO_PLACES))


def _change(ratio: Floats, born: Bools, changed: Bools) -> Floats:
    """[m] factors of two, up or down; 0 for features that have not changed."""
    change = np.zeros(len(ratio), dtype=np.float32)
    factor = np.where(born[changed], 100.0, np.nan_to_num(ratio[changed], nan=1.0))
    change[changed] = np.abs(np.log2(np.clip(factor, 0.01, 100)))
    return change


def _readable(e: Evidence, policy: Policy) -> Bools:
    """[m] whether the source's read-out still finds the feature, or did not find it at the baseline either."""
    still = (e.readability >= policy.min_readability) | (e.readability >= 0.5 * e.readability_before)
    return still | np.isnan(e.readability) | (e.readability_before < policy.min_readability)


def _of(solid: Bools, raw: Estimates) -> Estimates:
    """The estimates, NaN for features that cannot be judged, so that arithmetic ignores them."""
    known = solid & raw.sized
    value, error = (np.where(known, part, np.float32(np.nan)) for part in (raw.value, raw.error))
    return Estimates(value, error, known, raw.folds)


def _significance(
    ratio: Floats, se: Floats, solid: Bools, k: int, policy: Policy, level: float
) -> tuple[NDArray[np.float64], Bools, Bools]:
    """q-values of "outside the band", and which features are significantly under and over it."""
    se = np.maximum(se, 1e-9)
    outside = np.minimum(ratio - policy.suppressed_below, policy.amplified_above - ratio) / se
    p = np.where(solid, 1.0, np.nan)
    # Inside the band p is 1. That is most features, and `stdtr` is slow.
    far = solid & (outside < 0)
    p[far] = 2 * stdtr(k - 1, outside[far])
    q = benjamini_hochberg(p)
    significant = q <= level
    return q, significant & (ratio < policy.suppressed_below), significant & (ratio > policy.amplified_above)


def _usual(orthogonal: NDArray[np.floating]) -> float:
    """What nearly all unchanged features write along other directions, at most: the 99th percentile."""
    return quantile(np.nan_to_num(orthogonal), 0.99) if len(orthogonal) else 0.0


def _moved(
    e: Evidence, ratio: NDArray[np.floating], candidates: Bools, size: float, usual: float, reach: float, least: float
) -> Bools:
    """[m] candidates that are written along another direction, strongly enough not to be suppressed.

    ratio: [m] orthogonal ratio divided by the size factor, NaN if undefined. The whole interval of its excess
    over `usual` must be at least `least` of the former strength.
    """
    moved, excess = np.zeros(len(candidates), dtype=bool), np.sqrt(np.maximum(ratio**2 - usual**2, 0))
    columns = np.flatnonzero(candidates & (excess >= least))
    orthogonal = estimates(e.turned(columns))
    moved[columns] = orthogonal.sized & (excess[columns] - reach * orthogonal.error / size >= least)
    return moved


def _carried(successors: list[Successor], policy: Policy) -> bool:
    """Whether the successors together are active where the predecessor was, and write enough there to replace it."""
    active = sum(s.cofiring for s in successors) >= policy.successor_cofiring
    return active and sum(s.strength**2 for s in successors) >= policy.successor_strength**2


def _size(ratios: Estimates, typical: Bools, policy: Policy) -> float:
    """Median of typical features' ratios, weighted by precision; 1 if there are none.

    If two models share concepts but not a tokenizer, most features of a wide dictionary may describe what one model
    adds to its tokens. They write almost nothing, and the other model lacks them. With equal weights their ratio would
    be the size, and everything shared would seem amplified. Features that a baseline hardly writes have no precise
    ratio, so weighting by precision favours the features that carry the stream. No ratio is more precise than the code
    (docs/adr/0017).
    """
    known = typical & ratios.sized
    values, variance = ratios.value[known], ratios.error[known].astype(np.float64) ** 2
    if not len(values):
        return 1.0
    usual = quantile(np.abs(values), 0.5)
    middle = weighted_median(values, 1 / np.maximum(variance + (policy.code_error * usual) ** 2, 1e-12), usual)
    return middle if np.isfinite(middle) and abs(middle) > 1e-6 else 1.0


def _where(known: Bools, values: NDArray[np.floating]) -> Floats:
    return np.where(known, values, np.nan).astype(np.float32, copy=False)
