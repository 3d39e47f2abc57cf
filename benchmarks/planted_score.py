"""Scores of verdicts on a planted lineage: pure functions of codes, verdicts and truth.

**Matching.** A planted feature is the latent whose code correlates most with the true magnitudes over all positions;
pairs are taken greedily, best first, one to one. Under a correlation of 0.5 the feature has no latent: it is *missed*,
and every one of its verdicts counts as wrong.

**What is scored.** Each planted feature at each checkpoint from the second on, against its parent. The truth is
`Lineage.truth(c).against_parent`: an event counts at its onset; a feature that was suppressed and stays at its level is
`present` afterwards; one that was removed is `absent` at its onset *and at each later checkpoint* (absent then and
absent now is still absent). Of a feature that is not born yet nothing is expected, and `present`, `suppressed` or
`emerged` said of it is a false positive of that class.

**Latents without a planted feature.** One that is called `emerged` is a false positive, also where it is a second
latent of a feature that did emerge. One that is called `suppressed` or `absent` is a false positive unless the planted
feature that it follows most closely (correlation at least 0.3) has that status there.

**Macro-F1**: mean of the F1 of present, suppressed, absent and emerged, each over all scored pairs of all checkpoints.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from benchmarks.planted_data import ABSENT, EMERGED, PRESENT, SUPPRESSED, UNBORN, Lineage

CLASSES = (PRESENT, SUPPRESSED, ABSENT, EMERGED)
MATCHED_CORRELATION = 0.5
FOLLOWS_CORRELATION = 0.3
EVENT_STATUS = {"suppressed": SUPPRESSED, "removed": ABSENT, "born": EMERGED}

Verdicts = Mapping[int, Mapping[int, str]]
"""Checkpoint (from 2) -> number of the feature -> status."""


@dataclass(frozen=True)
class Matching:
    """Which latent is which planted feature."""

    latent: np.ndarray
    """int64 [n_planted]: number of the feature, -1 where it is missed."""
    correlation: np.ndarray
    """float [n_planted]: of the greedy pair, also under the threshold; 0 where no latent was left."""
    follows: dict[int, int]
    """Number of an unmatched feature -> the planted one that it follows, where it follows any."""


def correlations(planted: sparse.csr_array, codes: sparse.csr_array) -> np.ndarray:
    """Pearson correlation over positions of two sparse codes, float64 [n_planted, m]; 0 for a constant column."""
    n = planted.shape[0]
    if codes.shape[0] != n:
        raise ValueError(f"the codes have {codes.shape[0]} positions, the planted ones {n}")
    left, right = planted.astype(np.float64), codes.astype(np.float64)
    mean_l, mean_r = np.asarray(left.mean(0)).ravel(), np.asarray(right.mean(0)).ravel()
    std_l = np.sqrt(np.maximum(np.asarray(left.power(2).mean(0)).ravel() - mean_l**2, 0))
    std_r = np.sqrt(np.maximum(np.asarray(right.power(2).mean(0)).ravel() - mean_r**2, 0))
    covariance = (left.T @ right).toarray() / n - np.outer(mean_l, mean_r)
    scale = np.outer(std_l, std_r)
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-12)


def match(planted: sparse.csr_array, codes: sparse.csr_array, numbers: Sequence[int]) -> Matching:
    """Greedy one-to-one matching; `numbers` [m] are the features of the columns of `codes`."""
    table = correlations(planted, codes)
    latent = np.full(len(table), -1, dtype=np.int64)
    best = np.zeros(len(table))
    free_rows, free_columns = np.ones(table.shape[0], bool), np.ones(table.shape[1], bool)
    flat = np.flatnonzero(table.ravel() >= FOLLOWS_CORRELATION)
    for pair in flat[np.argsort(-table.ravel()[flat], kind="stable")]:
        row, column = divmod(int(pair), table.shape[1])
        if free_rows[row] and free_columns[column]:
            free_rows[row] = free_columns[column] = False
            best[row] = table[row, column]
            if table[row, column] >= MATCHED_CORRELATION:
                latent[row] = numbers[column]
    matched = set(latent.tolist())
    follows = {
        int(numbers[column]): int(table[:, column].argmax())
        for column in range(table.shape[1])
        if numbers[column] not in matched and table[:, column].max() >= FOLLOWS_CORRELATION
    }
    return Matching(latent, best, follows)


def score(lineage: Lineage, verdicts: Verdicts, matching: Matching) -> dict[str, Any]:
    """F1 by class, macro-F1, onset accuracy, and what went wrong most. See the module's docstring for the rules."""
    hits: Counter[str] = Counter()
    false_positives: Counter[str] = Counter()
    false_negatives: Counter[str] = Counter()
    confusion: Counter[str] = Counter()
    for checkpoint, said_of in verdicts.items():
        truth = lineage.truth(checkpoint).against_parent
        for feature, right in enumerate(truth):
            said = _said(said_of, int(matching.latent[feature]))
            if said == right:
                hits[right] += 1
                continue
            if right != UNBORN:
                false_negatives[right] += 1
            elif said == ABSENT:
                continue  # what is not born yet is not there
            false_positives[said] += 1
            if said in CLASSES or right != UNBORN:
                confusion[f"{right} -> {said}"] += 1
        for status, count in _unmatched_false_positives(said_of, matching, truth).items():
            false_positives[status] += count
            confusion[f"nothing -> {status}"] += count
    f1 = {
        status: 2 * hits[status] / max(2 * hits[status] + false_positives[status] + false_negatives[status], 1)
        for status in CLASSES
    }
    return {
        "macro_f1": sum(f1.values()) / len(f1),
        "f1": f1,
        "confusion": dict(confusion.most_common()),
        "missed": int((matching.latent < 0).sum()),
        "onset_accuracy": onset_accuracy(lineage, verdicts, matching),
    }


def onset_accuracy(lineage: Lineage, verdicts: Verdicts, matching: Matching) -> float:
    """Share of events whose status is first said at the checkpoint where it happened. A missed feature is wrong."""
    right = 0
    for event in lineage.events:
        latent = int(matching.latent[event.feature])
        said_at = [c for c in sorted(verdicts) if _said(verdicts[c], latent) == EVENT_STATUS[event.kind]]
        right += bool(said_at) and said_at[0] == event.checkpoint
    return right / max(len(lineage.events), 1)


def ratio_errors(
    lineage: Lineage, ratios: Mapping[int, Mapping[int, float | None]], matching: Matching
) -> dict[str, Any]:
    """Measured projection ratio less the true level, at the onset of suppressions and removals.

    ratios: checkpoint -> number of the feature -> projection ratio. `bias` is the mean, `largest` the largest size.
    """
    errors = []
    for event in lineage.events:
        ratio = ratios[event.checkpoint].get(int(matching.latent[event.feature]))
        if event.kind != "born" and ratio is not None:
            errors.append(ratio - event.level)
    found = np.array(errors)
    if not len(found):
        return {"n": 0, "bias": None, "largest": None}
    return {"n": len(found), "bias": float(found.mean()), "largest": float(np.abs(found).max())}


def id_stability(before: Matching, after: Matching) -> float:
    """Share of the planted features that had a latent before and have the one of the same id now."""
    had = before.latent >= 0
    return float((before.latent[had] == after.latent[had]).mean()) if had.any() else 0.0


def _said(said_of: Mapping[int, str], latent: int) -> str:
    """Status of a planted feature's latent; `unborn` where the service does not know the latent yet."""
    return "missed" if latent < 0 else said_of.get(latent, UNBORN)


def _unmatched_false_positives(said_of: Mapping[int, str], matching: Matching, truth: Sequence[str]) -> Counter[str]:
    matched, wrong = set(matching.latent.tolist()), Counter[str]()
    for number, status in said_of.items():
        if number in matched or status not in (SUPPRESSED, ABSENT, EMERGED):
            continue
        follows = matching.follows.get(number)
        if status == EMERGED or follows is None or truth[follows] != status:
            wrong[status] += 1
    return wrong
