"""Signatures: the features that separate a contrast set, and how much of the difference a checkpoint writes.

A contrast set has rows of two classes. One half of the rows selects the features and the other half evaluates them;
groups are not split, so the two rows of a pair stay together. With f(r) [k] the selected features at a row, read by the
checkpoint's own read-outs, and d [k, D] what the checkpoint writes for each,

    V = sum_i (E f_i | positive - E f_i | negative) d_i       the part of the difference that they write
    <V, V'> = Delta G Delta' - tr(G S)                        with G = d d'^T; unbiased: S is the covariance of the
                                                              two differences' own sampling errors
    strength ratio = <V, V_b R> / <V_b, V_b>                  b: at the baseline; R: the rotation that all other
                                                              features share (`measure.shared_turn`)

A difference that rotates with everything else keeps its strength; one written along a new direction does not.
Intervals are jackknife intervals over folds of groups, and bootstrap intervals over groups for an AUROC.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from featurewatch.workers.verdicts.folds import FOLDS

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

PERMUTATIONS = 400
MOST_DEALS = 20_000_000
"""Maximum size of the null sample, over all features."""
RESAMPLES = 1000
BLOCK = 4096
"""Features ranked at a time."""


class Rows(NamedTuple):
    """Rows of one half of a contrast set."""

    positive: Bools
    """[r]"""
    group: Ints
    """[r] numbered from 0; the rows of a group are one observation"""

    @property
    def paired(self) -> bool:
        """Whether every group has one positive and one negative row."""
        counts = np.stack([np.bincount(self.group[self.positive], minlength=self.n_groups),
                           np.bincount(self.group[~self.positive], minlength=self.n_groups)])  # fmt: skip
        return bool((counts == 1).all())

    @property
    def n_groups(self) -> int:
        return int(self.group.max(initial=-1)) + 1


class Chosen(NamedTuple):
    """Features that separate the classes, strongest first."""

    columns: Ints
    """[k]"""
    weight: Floats
    """[k] in the score: difference of the means over the pooled variance"""
    auroc: Floats
    """[k] of each feature alone, on the selecting half"""
    q_value: Floats
    """[k]"""


class Estimate(NamedTuple):
    """An estimate with its 95% interval."""

    value: float
    low: float
    high: float


def halves(positive: Bools, group: Ints, seed: int) -> Bools:
    """The rows that evaluate, bool [r]: half of the groups, stratified by class."""
    rng = np.random.default_rng(seed)
    share = np.bincount(group, weights=positive) / np.maximum(np.bincount(group), 1)
    evaluates = np.zeros(int(group.max()) + 1, dtype=bool)
    for stratum in np.unique(share):
        shuffled = rng.permutation(np.flatnonzero(share == stratum))
        evaluates[shuffled[len(shuffled) // 2 :]] = True
    return evaluates[group]


def take(positive: Bools, group: Ints, rows: Bools) -> Rows:
    """A subset of the rows, with groups renumbered from 0."""
    return Rows(positive[rows], np.unique(group[rows], return_inverse=True)[1].astype(np.int64))


def choose(
    read: Callable[[slice], Floats],
    m: int,
    rows: Rows,
    *,
    most: int,
    fdr: float,
    least: float,
    seed: int,
    to_q: Callable[[Floats], Floats],
) -> Chosen:
    """The features that separate the classes best, if any.

    read: columns -> values [r, b] at these rows. q-values (`to_q` of p-values [m]) come from a permutation test: labels
    are permuted, within groups if these are pairs, and a feature's standardised rank sum is compared with the permuted
    ones of all features. Features with q <= fdr and an AUROC of at least `least` in either direction are selected.
    """
    flips = _relabelled(rows, np.random.default_rng(seed))
    z, auroc, sample = np.zeros(m), np.full(m, 0.5), []
    stride = max(1, m * PERMUTATIONS // MOST_DEALS)  # limits the size of the null sample
    for start in range(0, m, BLOCK):
        part = slice(start, min(m, start + BLOCK))
        z[part], permuted, auroc[part] = _rank_sums(rankdata(read(part), axis=0), rows, flips)
        sample.append(permuted[::stride])
    null = np.sort(np.concatenate(sample))
    known = np.isfinite(z)
    p = np.full(m, np.nan)
    p[known] = (1 + len(null) - np.searchsorted(null, np.abs(z[known]) - 1e-9)) / (1 + len(null))
    q = to_q(p)
    fits = np.flatnonzero((np.nan_to_num(q, nan=1.0) <= fdr) & (np.abs(auroc - 0.5) >= least - 0.5))
    columns = fits[np.argsort(-np.abs(auroc[fits] - 0.5), kind="stable")][:most]
    values = np.concatenate([read(slice(c, c + 1)) for c in columns], axis=1) if len(columns) else np.zeros((0, 0))
    return Chosen(columns, weights(values, rows) if len(columns) else np.zeros(0), auroc[columns], q[columns])


def weights(values: Floats, rows: Rows) -> Floats:
    """Weights of a score over features [r, k]: difference of the means over the pooled variance (a diagonal LDA)."""
    above, below = values[rows.positive], values[~rows.positive]
    spread = (above.var(0) * len(above) + below.var(0) * len(below)) / len(values)
    floor = 1e-3 * float(spread.mean()) + 1e-12  # a nearly constant feature must not dominate
    return np.asarray((above.mean(0) - below.mean(0)) / np.maximum(spread, floor), dtype=np.float64)


def auroc(score: Floats, rows: Rows, seed: int = 0) -> Estimate:
    """AUROC of scores [r] with a bootstrap interval over groups."""
    above, below = score[rows.positive], score[~rows.positive]
    wins = (above[:, None] > below[None]) + 0.5 * (above[:, None] == below[None])
    value = float(wins.mean())
    drawn = np.random.default_rng(seed).multinomial(rows.n_groups, np.full(rows.n_groups, 1 / rows.n_groups), RESAMPLES)
    up, down = drawn[:, rows.group[rows.positive]], drawn[:, rows.group[~rows.positive]]
    total = up.sum(1) * down.sum(1)
    resampled = ((up @ wins) * down).sum(1)[total > 0] / total[total > 0]
    low, high = np.quantile(resampled, [0.025, 0.975]) if len(resampled) else (0.0, 1.0)
    # Every resample of a perfect separation is perfect, but this few rows could still hide an exception.
    unseen = 1 - 0.025 ** (1 / min(len(above), len(below)))
    if value == 1.0:
        low = 1 - unseen
    if value == 0.0:
        high = unseen
    return Estimate(value, float(low), float(high))


def random_sets(read: Callable[[Ints], tuple[Floats, Floats]], live: Ints, k: int, select: Rows, judge: Rows,
                seed: int, sets: int = 100) -> Floats:  # fmt: skip
    """The null: AUROCs [sets] of random sets of k live features, weighted on one half and evaluated on the other.

    read: columns [k] -> values at the rows of both halves.
    """
    rng, aurocs = np.random.default_rng(seed), []
    for _ in range(sets):
        fitted, held_out = read(rng.choice(live, size=min(k, len(live)), replace=False))
        score = held_out @ weights(fitted, select)
        ranks = rankdata(score)
        n = int(judge.positive.sum())
        aurocs.append((ranks[judge.positive].sum() - n * (n + 1) / 2) / (n * (len(ranks) - n)))
    return np.array(aurocs)


class Strengths(NamedTuple):
    """Products of the differences that two checkpoints write, over all rows and without each fold: [1 + K]."""

    now: Floats
    """<V_c, V_c>"""
    before: Floats
    """<V_b, V_b>"""
    both: Floats
    """<V_c, V_b>"""


def strengths(now: Floats, before: Floats, grams: tuple[Floats, Floats, Floats], rows: Rows) -> Strengths:
    """Products of two checkpoints' differences at the same rows.

    now, before: [r, k] values of the features. grams: [k, k] d_c d_c^T, d_b d_b^T and d_c d_b^T, in the same basis.
    """
    fold = rows.group % FOLDS
    subsets = [np.ones(len(fold), dtype=bool), *(fold != g for g in range(min(FOLDS, rows.n_groups)))]
    terms = ((now, now, grams[0]), (before, before, grams[1]), (now, before, grams[2]))
    products = [
        [_product(x[keep], y[keep], gram, rows.positive[keep], rows.group[keep], rows.paired) for keep in subsets]
        for x, y, gram in terms
    ]
    return Strengths(*(np.array(product) for product in products))


def _product(x: Floats, y: Floats, gram: Floats, positive: Bools, group: Ints, paired: bool) -> float:
    """<V_x, V_y> corrected for the sampling errors that both share."""
    if paired:
        order = np.argsort(group[positive]), np.argsort(group[~positive])
        dx, dy = (v[positive][order[0]] - v[~positive][order[1]] for v in (x, y))
        return float(dx.mean(0) @ gram @ dy.mean(0) - _noise(dx, dy, gram))
    ends = [(v[positive], v[~positive]) for v in (x, y)]
    delta_x, delta_y = (a.mean(0) - b.mean(0) for a, b in ends)
    noise = sum(_noise(ends[0][side], ends[1][side], gram) for side in (0, 1))
    return float(delta_x @ gram @ delta_y - noise)


def _noise(x: Floats, y: Floats, gram: Floats) -> float:
    """tr(G S / n): the expected contribution of sampling errors to the product of two means over the same n rows."""
    n = len(x)
    if n < 2:
        return 0.0
    x, y = x - x.mean(0), y - y.mean(0)
    return float(((x @ gram) * y).sum() / (n - 1) / n)


def interval(replicates: Floats, reach: float) -> Estimate:
    """Jackknife interval of replicates [1 + K], of which the first is over all folds. reach: in standard errors."""
    k = len(replicates) - 1
    error = float(np.sqrt((k - 1) / k * ((replicates[1:] - replicates[1:].mean()) ** 2).sum())) if k > 1 else np.inf
    value = float(replicates[0])
    return Estimate(value, value - reach * error, value + reach * error)


def _relabelled(rows: Rows, rng: np.random.Generator) -> Floats:
    """Permuted labels, 1 for positive: [r, PERMUTATIONS]."""
    labels = rows.positive.astype(np.float64)
    if not rows.paired:
        return rng.permuted(np.repeat(labels[:, None], PERMUTATIONS, axis=1), axis=0)
    swapped = rng.random((rows.n_groups, PERMUTATIONS)) < 0.5
    return np.where(swapped[rows.group], 1 - labels[:, None], labels[:, None])


def _rank_sums(ranks: Floats, rows: Rows, flips: Floats) -> tuple[Floats, Floats, Floats]:
    """Standardised rank sums of columns, [b] (NaN for a constant column); their null sample, absolute; and AUROCs [b].

    Mean and variance over permutations are exact. Estimates would be biased against the observed sum, which is not
    among the sampled permutations.
    """
    permuted, own = ranks.T @ flips, ranks.T @ rows.positive.astype(np.float64)
    n, of = int(rows.positive.sum()), len(ranks)
    if rows.paired:
        apart = np.zeros((rows.n_groups, ranks.shape[1]))
        np.add.at(apart, rows.group, np.where(rows.positive, 1.0, -1.0)[:, None] * ranks)
        middle, variance = ranks.sum(0) / 2, (apart**2).sum(0) / 4
    else:
        middle = ranks.sum(0) * n / of
        variance = n * (of - n) / (of * (of - 1)) * ((ranks - ranks.mean(0)) ** 2).sum(0)
    varies, deviation = variance > 1e-9, np.sqrt(np.maximum(variance, 1e-9))
    scaled = np.abs(permuted - middle[:, None])[varies] / deviation[varies, None]
    return (
        np.where(varies, (own - middle) / deviation, np.nan),
        scaled.ravel(),
        (own - n * (n + 1) / 2) / (n * (of - n)),
    )
