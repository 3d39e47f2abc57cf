"""Rules that turn attributions into edges, and the edges of two checkpoints into gained, lost, changed and rewired.

Pure numpy. Attributions are sums over a target's positions by fold of documents, so every figure has a jackknife
error. Two checkpoints are compared fold by fold, which cancels the variation between documents.

The similarity of two profiles of edges is a cosine that noise does not lower, because its products are taken between
different folds only:

    U(A, B) = sum_{k != l} <S_k^A, S_l^B> / sum_{k != l} n_k^A n_l^B        agreement = U(A, B) / sqrt(U(A, A) U(B, B))

U(A, A) is what two samples of documents from one checkpoint have in common. An agreement below 1 means that two
checkpoints have less in common than two samples of the same one.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from featurewatch.service.verdicts.judge import standard_error
from featurewatch.service.verdicts.policy import Policy
from featurewatch.service.verdicts.significance import benjamini_hochberg

Doubles = NDArray[np.float64]
Change = Literal["gained", "lost", "changed"]

MIN_SHARE = 0.01
"""Smallest share of the summed absolute weights for an edge to count, however significant it is."""
SLIGHT = 0.25
"""An edge below this share of its size in the other checkpoint is gained or lost instead of changed. An edge that
moved by less than this share of the larger size is unchanged."""
ALIKE = 0.9
"""`rewired` needs an agreement significantly below this, because a fine-tune shifts every edge slightly."""
ROUNDING = 1e-6
"""Relative rounding error of float32; no error is taken to be smaller."""


@dataclass
class Edges:
    """Edges of one target, [E] each."""

    weight: Doubles
    """Mean contribution to the target's pre-activation at positions where it fires."""
    lo: Doubles
    hi: Doubles
    q: Doubles
    kept: NDArray[np.bool_]
    """Whether the edge is large enough and above the variation between documents."""


@dataclass
class EdgeChange:
    """One edge in two checkpoints."""

    index: int
    kind: Change
    before: float
    after: float
    lo: float
    """Lower end of the interval of after - before."""
    hi: float
    q: float


@dataclass
class Rewiring:
    """Two checkpoints' edges into one target."""

    changes: list[EdgeChange]
    agreement: float | None
    """1 for identical profiles. None if too noisy to tell."""
    agreement_ci: tuple[float, float] | None
    p_value: float | None
    rewired: bool | None


def replicates(sums: Doubles, counts: Doubles) -> Doubles:
    """Jackknife replicates of sum over count, [K, ...] -> [K + 1, ...], the estimate first. Empty folds are dropped."""
    used = counts > 0
    sums, counts = sums[used], counts[used]
    total, n = sums.sum(0), counts.sum()
    shape = (-1,) + (1,) * (sums.ndim - 1)
    left = (total - sums) / (n - counts).reshape(shape)
    return np.concatenate([(total / n)[None], left])


def enough(counts: Doubles) -> bool:
    """Whether there are enough folds for an error estimate."""
    return int((counts > 0).sum()) >= 3


def edges(sums: Doubles, counts: Doubles, policy: Policy) -> Edges:
    """Edges of a target from sums [K, E] and counts [K], and which of them are above the noise."""
    values = replicates(sums, counts)
    weight, error = values[0], _errors(values)
    k = len(values) - 1
    reach = float(stdtrit(k - 1, 0.5 + policy.confidence / 2))
    live = (sums != 0).any(0)
    p = np.where(live, 2 * stdtr(k - 1, -np.abs(weight) / error), np.nan)
    q = benjamini_hochberg(p)
    large = np.abs(weight) >= MIN_SHARE * np.abs(weight).sum()
    kept = live & large & (np.nan_to_num(q, nan=1.0) <= policy.fdr)
    return Edges(weight, weight - reach * error, weight + reach * error, q, kept)


def compare(
    before: tuple[Doubles, Doubles], after: tuple[Doubles, Doubles], policy: Policy, targets: int = 1
) -> Rewiring:
    """Compare a target's edges in two checkpoints, each (sums [K, E], counts [K]) over the same sources.

    `targets` is the number of comparisons made together; the false discovery rate of `rewired` is divided among them.
    """
    used = (before[1] > 0) & (after[1] > 0)  # folds with positions in both checkpoints
    a, b = (before[0][used], before[1][used]), (after[0][used], after[1][used])
    agreement, interval, p = _agreement(a, b, policy)
    rewired = None if p is None else p <= policy.fdr / max(targets, 1)
    return Rewiring(_changes(a, b, policy), agreement, interval, p, rewired)


def _changes(a: tuple[Doubles, Doubles], b: tuple[Doubles, Doubles], policy: Policy) -> list[EdgeChange]:
    old, new = edges(*a, policy), edges(*b, policy)
    candidates = np.flatnonzero(old.kept | new.kept)
    if not len(candidates):
        return []
    difference = replicates(b[0][:, candidates], b[1]) - replicates(a[0][:, candidates], a[1])
    error, k = _errors(difference), len(difference) - 1
    q = benjamini_hochberg(2 * stdtr(k - 1, -np.abs(difference[0]) / error))
    reach = float(stdtrit(k - 1, 0.5 + policy.confidence / 2))
    changes = []
    for i, index in enumerate(candidates.tolist()):
        was, now, moved = old.weight[index], new.weight[index], difference[0, i]
        if q[i] > policy.fdr or abs(moved) < SLIGHT * max(abs(was), abs(now)):
            continue
        kind: Change = "changed"
        if new.kept[index] and abs(was) < SLIGHT * abs(now):
            kind = "gained"
        elif old.kept[index] and abs(now) < SLIGHT * abs(was):
            kind = "lost"
        ends = (float(moved - reach * error[i]), float(moved + reach * error[i]))
        changes.append(EdgeChange(index, kind, float(was), float(now), *ends, float(q[i])))
    return sorted(changes, key=lambda change: -abs(change.after - change.before))


def _agreement(
    a: tuple[Doubles, Doubles], b: tuple[Doubles, Doubles], policy: Policy
) -> tuple[float | None, tuple[float, float] | None, float | None]:
    """Agreement of two profiles, its interval, and the p-value of "not under ALIKE"."""
    folds = len(a[1])
    if folds < 3:
        return None, None, None
    rows = [np.arange(folds), *(np.delete(np.arange(folds), g) for g in range(folds))]
    products = np.array([[_product(x, y, part) for x, y in ((a, a), (b, b), (a, b))] for part in rows])
    own = products[:, :2]
    # Each checkpoint's similarity with itself must exceed its noise, or there is no profile to compare.
    if (own <= 0).any() or (own[0] < 3 * standard_error(own)).any():
        return None, None, None
    values = products[:, 2] / np.sqrt(own[:, 0] * own[:, 1])
    error = float(np.maximum(standard_error(values), ROUNDING))
    reach = float(stdtrit(folds - 1, 0.5 + policy.confidence / 2))
    ends = (float(values[0] - reach * error), float(values[0] + reach * error))
    return float(values[0]), ends, float(stdtr(folds - 1, (values[0] - ALIKE) / error))


def _product(a: tuple[Doubles, Doubles], b: tuple[Doubles, Doubles], rows: NDArray[np.int64]) -> float:
    """U(A, B) over the folds in `rows`."""
    (s, n), (t, m) = (a[0][rows], a[1][rows]), (b[0][rows], b[1][rows])
    joint = float(s.sum(0) @ t.sum(0) - (s * t).sum())
    return joint / float(n.sum() * m.sum() - n @ m)


def _errors(values: Doubles) -> Doubles:
    """Jackknife errors of replicates [K + 1, E], at least the rounding error."""
    error = standard_error(values).astype(np.float64)
    largest = float(np.abs(values[0]).max(initial=0.0))
    return np.maximum(error, max(ROUNDING * largest, 1e-30))
