"""Scores of verdicts on a planted lineage: pure functions of codes, verdicts and truth.

**Matching.** A planted feature is matched to the latent whose code correlates most with its true magnitudes over all
positions; pairs are assigned greedily, best first, one to one. Below a correlation of 0.5 the feature has no latent: it
is *missed*, and all of its verdicts count as wrong.

**What is scored.** Each planted feature at each checkpoint from the second on, against its parent. The truth is
`Lineage.truth(c).against_parent`: an event counts at its onset, and a feature whose strength or direction stays changed
is `present` afterwards. A removed feature is `absent`, a replaced one `replaced` at its onset, and both stay
`absent` later; for a replaced feature `replaced` remains correct too. A feature that is not born yet may be `absent` or
`indeterminate`; any other status is a false positive of its class.

**Latents without a planted feature.** One with status `emerged` is a false positive, even if it is a second latent of a
feature that did emerge. One with another change status is a false positive unless that status is correct for the
planted feature it follows most closely (correlation of at least 0.3).

**Macro-F1**: mean F1 of present, weakened, strengthened, suppressed, absent, relocated, replaced and emerged, as far as
the lineage has them, each over all scored pairs of all checkpoints. Amplified is reported separately. With
`graded=False` the truth has no graded statuses: a weakened or strengthened feature is `present`.

`planted_places_score` scores where features are active.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from benchmarks.planted_data import Lineage
from benchmarks.planted_shape import (
    ABSENT,
    AMPLIFIED,
    EMERGED,
    EVENT_STATUS,
    LEAVING,
    PRESENT,
    RELOCATED,
    REPLACED,
    STRENGTHENED,
    SUCCEEDED,
    SUPPRESSED,
    UNBORN,
    UNGRADED,
    WEAKENED,
)

CLASSES = (PRESENT, WEAKENED, STRENGTHENED, SUPPRESSED, ABSENT, RELOCATED, REPLACED, EMERGED)
SIMPLE = (PRESENT, SUPPRESSED, ABSENT, EMERGED)
_SIMPLER = {REPLACED: ABSENT} | UNGRADED
CHANGES = (WEAKENED, STRENGTHENED, SUPPRESSED, AMPLIFIED, ABSENT, RELOCATED, REPLACED, EMERGED)
MISSED = "missed"
"""Status of a planted feature without a latent."""
MATCHED_CORRELATION = 0.5
FOLLOWS_CORRELATION = 0.3

Verdicts = Mapping[int, Mapping[int, str]]
"""Checkpoint (from 2) -> number of the feature -> status."""


@dataclass(frozen=True)
class Matching:
    """The latents of the planted features."""

    latent: np.ndarray
    """int64 [n_planted]: number of the feature, -1 if missed."""
    correlation: np.ndarray
    """float [n_planted]: of the greedy pair, even below the threshold; 0 if no latent was left."""
    follows: dict[int, int]
    """Number of an unmatched feature -> the planted one that it follows, if any."""

    @cached_property
    def numbers(self) -> set[int]:
        """Features that match a planted one."""
        return set(self.latent.tolist())


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


Matchings = Matching | Mapping[int, Matching]
"""One matching for the lineage, or one per checkpoint if each step has its own dictionary."""


def score(lineage: Lineage, verdicts: Verdicts, matching: Matchings, *, graded: bool = True) -> dict[str, Any]:
    """Precision, recall and F1 by class, macro-F1, onset accuracy, and what went wrong most.

    `macro_f1_matched` leaves missed features out: the score of the features that the dictionary contains.
    `macro_f1_simple` is over present, suppressed, absent and emerged of the planted features alone, with `replaced` as
    another word for `absent`, and the graded statuses for `present`. See the module's docstring for the rules.
    """
    tally, missed = _Tally(), 0
    for checkpoint, said_of in sorted(verdicts.items()):
        truth, at = _statuses(lineage, checkpoint, graded=graded), _at(matching, checkpoint)
        succeeded = _succeeded_before(lineage, checkpoint)
        for feature, right in enumerate(truth):
            tally.add(right, _said(said_of, int(at.latent[feature])), feature in succeeded)
        for number, status in said_of.items():
            if status in CHANGES and number not in at.numbers:
                follows = at.follows.get(number)
                accepted = follows is not None and _right(truth[follows], status, follows in succeeded)
                if status == EMERGED or not accepted:
                    tally.add_unmatched(status)
        missed = int((at.latent < 0).sum())
    simple = _Tally()
    for checkpoint, said_of in verdicts.items():
        at = _at(matching, checkpoint)
        for feature, right in enumerate(lineage.truth(checkpoint).against_parent):
            said = _said(said_of, int(at.latent[feature]))
            simple.add(_SIMPLER.get(right, right), _SIMPLER.get(said, said), False)
    found = tally.classes()
    onsets = _onsets(lineage, verdicts, matching, graded=graded)
    scored = [status for status in CLASSES if found[status]["support"]]
    return {
        "macro_f1": _mean([found[status]["f1"] for status in scored]),
        "macro_f1_matched": _mean(
            [found[status]["f1_matched"] for status in scored if found[status]["support"] > tally.missed[status]]
        ),
        "macro_f1_simple": _mean([simple.classes()[status]["f1"] for status in SIMPLE]),
        "f1": {status: found[status]["f1"] for status in found},
        "classes": found,
        "confusion": dict(tally.confusion.most_common()),
        "missed": missed,
        "onset_accuracy": _mean(list(onsets.values())),
        "onset_by_kind": {
            kind: _mean([right for n, right in onsets.items() if lineage.events[n].kind == kind])
            for kind in dict.fromkeys(lineage.events[n].kind for n in onsets)
        },
    }


class _Tally:
    """Counts of right and wrong statuses."""

    def __init__(self) -> None:
        self.hits: Counter[str] = Counter()
        self.false_positives: Counter[str] = Counter()
        self.false_negatives: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self.confusion: Counter[str] = Counter()

    def add(self, right: str, said: str, succeeded: bool) -> None:
        if _right(right, said, succeeded):
            self.hits[right] += 1
            return
        if right != UNBORN:
            self.false_negatives[right] += 1
            self.missed[right] += said == MISSED
        elif said == ABSENT:
            return  # what is not born yet is not there
        self.false_positives[said] += 1
        if right != UNBORN or said in CHANGES or said == PRESENT:
            self.confusion[f"{right} -> {said}"] += 1

    def add_unmatched(self, status: str) -> None:
        self.false_positives[status] += 1
        self.confusion[f"nothing -> {status}"] += 1

    def classes(self) -> dict[str, dict[str, float]]:
        found = {}
        for status in (*CLASSES, AMPLIFIED):
            hits, wrong, lost = self.hits[status], self.false_positives[status], self.false_negatives[status]
            found[status] = {
                "precision": hits / max(hits + wrong, 1),
                "recall": hits / max(hits + lost, 1),
                "f1": 2 * hits / max(2 * hits + wrong + lost, 1),
                "f1_matched": 2 * hits / max(2 * hits + wrong + lost - self.missed[status], 1),
                "support": hits + lost,
            }
        return found


def _onsets(lineage: Lineage, verdicts: Verdicts, matching: Matchings, *, graded: bool) -> dict[int, float]:
    """Number of the event -> 1 if its status first appears at its onset, else 0, also for a missed feature.

    Events that leave a feature `present` have no onset.
    """
    statuses = EVENT_STATUS if graded else {k: s for k, s in EVENT_STATUS.items() if s not in UNGRADED}
    born = {e.feature: e.checkpoint for e in lineage.events if statuses.get(e.kind) == EMERGED}
    right = {}
    for number, event in enumerate(lineage.events):
        if event.kind not in statuses:
            continue
        checkpoints = [c for c in sorted(verdicts) if c >= born.get(event.feature, 0)]
        latents = {c: int(_at(matching, c).latent[event.feature]) for c in checkpoints}
        said_at = [c for c in checkpoints if _said(verdicts[c], latents[c]) == statuses[event.kind]]
        right[number] = float(bool(said_at) and said_at[0] == event.checkpoint)
    return right


def ratio_errors(
    lineage: Lineage, ratios: Mapping[int, Mapping[int, float | None]], matching: Matching
) -> dict[str, Any]:
    """Measured projection ratio less the true one, at the onset of events that leave or take something (no births).

    Narrowed and displaced features are left out, as in `planted_calibration.cases`.
    ratios: checkpoint -> number of the feature -> projection ratio. `bias` is the mean, `largest` the largest size.
    """
    errors = []
    for event in lineage.events:
        if event.kind in LEAVING:
            continue
        ratio = ratios[event.checkpoint].get(int(matching.latent[event.feature]))
        truth = lineage.ratios(event.checkpoint, event.checkpoint - 1)[event.feature]
        if np.isfinite(truth) and ratio is not None:
            errors.append(ratio - truth)
    found = np.array(errors)
    if not len(found):
        return {"n": 0, "bias": None, "largest": None}
    return {"n": len(found), "bias": float(found.mean()), "largest": float(np.abs(found).max())}


def id_stability(before: Matching, after: Matching) -> float:
    """Share of the planted features that had a latent before and have the one of the same id now."""
    had = before.latent >= 0
    return float((before.latent[had] == after.latent[had]).mean()) if had.any() else 0.0


def successors_named(
    lineage: Lineage, named: Mapping[int, Mapping[int, Sequence[int]]], matching: Matching
) -> dict[str, Any]:
    """Whether the latents of the planted successors are among those reported at the onset.

    named: checkpoint -> number of the predecessor -> numbers of its successors. `right` is the share of replaced,
    split and merged features all of whose planted successors are named; `extra` the mean number of others named.
    """
    right, extra = [], []
    for event in lineage.events:
        if event.kind in SUCCEEDED:
            told = set(named.get(event.checkpoint, {}).get(int(matching.latent[event.feature]), ()))
            planted = {int(matching.latent[i]) for i in event.successors}
            right.append(float(-1 not in planted and planted <= told))
            extra.append(float(len(told - planted)))
    return {"n": len(right), "right": _mean(right), "extra": _mean(extra)}


def _at(matching: Matchings, checkpoint: int) -> Matching:
    return matching if isinstance(matching, Matching) else matching[checkpoint]


def _statuses(lineage: Lineage, checkpoint: int, *, graded: bool) -> list[str]:
    statuses = lineage.truth(checkpoint).against_parent
    return statuses if graded else [UNGRADED.get(status, status) for status in statuses]


def _said(said_of: Mapping[int, str], latent: int) -> str:
    """Status of a planted feature's latent; `unborn` if it is not known yet."""
    return MISSED if latent < 0 else said_of.get(latent, UNBORN)


def _right(truth: str, said: str, succeeded: bool) -> bool:
    """succeeded: the feature was replaced at an earlier checkpoint."""
    return said == truth or (succeeded and truth == ABSENT and said == REPLACED)


def _succeeded_before(lineage: Lineage, checkpoint: int) -> set[int]:
    return {e.feature for e in lineage.events if e.kind in SUCCEEDED and e.checkpoint < checkpoint}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0
