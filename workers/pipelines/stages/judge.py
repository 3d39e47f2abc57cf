"""Stage judge: statuses from measurements."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featurewatch.service.recording import verdicts
from featurewatch.service.verdicts.judge import (
    BASELINE_Z,
    Evidence,
    Judgement,
    Successor,
    judge,
    standard_error,
)
from featurewatch.service.verdicts.origins import held
from featurewatch.service.verdicts.statuses import GONE, Status
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared.basis import Basis
from featurewatch.workers.pipelines.shared.pairing import ParentPair
from featurewatch.workers.pipelines.stages.activity import Activity
from featurewatch.workers.pipelines.stages.measure import Measurements, appearance, firing
from featurewatch.workers.verdicts.succession import Share, shares

STRENGTHENED = 1.5
"""A feature that grew by this factor may be the successor of one that weakened, like one that is new."""


@dataclass
class ParentComparison:
    """A checkpoint measured against its parent, and the verdict on every feature."""

    pair: ParentPair
    basis: Basis
    measurements: Measurements
    evidence: Evidence
    judgement: Judgement
    activity: Activity | None = None
    """None for halves of a checkpoint: they have no positions in common"""

    @property
    def numbers(self) -> np.ndarray:
        """int64 [m] feature numbers."""
        return self.basis.numbers.numpy()

    @property
    def new(self) -> np.ndarray:
        """bool [m] columns that the extension appended."""
        return self.basis.born.numpy()

    @property
    def gone(self) -> list[int]:
        """Numbers of the features that are gone at the checkpoint."""
        gone = np.array([status in GONE for status in self.judgement.status], dtype=bool)
        return self.basis.numbers[gone].tolist()  # type: ignore[no-any-return]


def judge_pair(
    execution: Execution,
    pair: ParentPair,
    basis: Basis,
    measurements: Measurements,
    read_activity: Callable[[Tensor], Activity] | None = None,
) -> ParentComparison:
    """Judge every feature by its measurements and by what is known of it at the parent.

    read_activity: called with the features that were relocated (bool [m]), because own codes follow them.
    """
    policy, replicates = pair.context.policy, {key: value.numpy() for key, value in measurements.replicates.items()}
    firings, documents = firing(basis, pair.activations.document)
    at_parent = appearance(
        measurements.born_share,
        measurements.born_share_se,
        measurements.replicates["strength_ratio"],
        measurements.baseline_z,
    )
    readability = measurements.per_hook["readability"].amax(0).numpy()
    before = _readability_at_parent(execution, pair, basis)
    readability_before = np.where(np.isnan(before), measurements.parent_readability.numpy(), before)
    squared = replicates["strength"] ** 2
    written = squared[0] >= BASELINE_Z * standard_error(squared)
    readable = np.nan_to_num(readability) >= policy.min_readability
    # A new column is a new feature if it is surely written here, can be read here, and the parent does not have it.
    # A joint fit appends no columns: any of them may be new.
    candidate = basis.born.numpy() if pair.parent_readability is None else np.ones(basis.code.m, dtype=bool)
    born = candidate & written & readable & ~held(at_parent, readability, readability_before, policy)
    evidence = Evidence(
        projection=replicates["projection"],
        strength_ratio=replicates["strength_ratio"],
        orthogonal=replicates["orthogonal"],
        firings=firings,
        documents=documents,
        readability=readability,
        readability_before=readability_before,
        baseline_z=measurements.baseline_z.numpy(),
        there_before=~np.isin(basis.numbers.numpy(), pair.gone),
        born_here=born,
        comparison=pair.context.comparison,
    )
    first = judge(evidence, policy)
    activity = read_activity(torch.from_numpy(first.codes == Status.RELOCATED.code)) if read_activity else None
    evidence.activity = activity.comparison if activity else None
    candidates = np.flatnonzero(born | (np.nan_to_num(first.projection_ratio) > STRENGTHENED))
    strength, ratio = replicates["strength"][0], replicates["strength_ratio"][0]
    strength_before = np.nan_to_num(strength / np.where(ratio > 0, ratio, np.nan))
    weakened = np.flatnonzero(first.weakened)
    evidence.successors = _successors(shares(basis.code.to_scipy(), weakened, candidates, strength_before, strength))
    return ParentComparison(pair, basis, measurements, evidence, judge(evidence, policy), activity)


def _readability_at_parent(execution: Execution, pair: ParentPair, basis: Basis) -> np.ndarray:
    """[m] NaN for features that the parent's code does not have."""
    if pair.parent_readability is not None:
        return pair.parent_readability
    if pair.context.parent is None:
        return np.full(basis.code.m, np.nan, dtype=np.float32)
    with execution.read() as session:
        return verdicts.readability(session, pair.context.parent.id, basis.numbers.numpy())


def _successors(carried: dict[int, dict[int, Share]]) -> dict[int, list[Successor]]:
    """Successors of each weakened feature with their kind: replaced, split or merged."""
    taken = Counter(candidate for named in carried.values() for candidate in named)
    return {
        column: [
            Successor(candidate, _kind(taken[candidate], len(named)), share.cofiring, share.strength)
            for candidate, share in sorted(named.items(), key=lambda item: -item[1].cofiring)
        ]
        for column, named in carried.items()
    }


def _kind(predecessors: int, successors: int) -> str:
    if predecessors > 1:
        return "merged"
    return "split" if successors > 1 else "replaced"
