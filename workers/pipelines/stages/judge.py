"""Stage judge: statuses from measurements, and the one transaction that writes everything."""

from collections import Counter

import numpy as np
import structlog

from featurewatch.service.verdicts import logic as verdicts
from featurewatch.service.verdicts.judge import BASELINE_Z, Evidence, Judgement, Successor, judge, standard_error
from featurewatch.service.verdicts.origins import held
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared.basis import Basis
from featurewatch.workers.pipelines.shared.context import OnboardingContext
from featurewatch.workers.pipelines.shared.sources import Activations
from featurewatch.workers.pipelines.stages.measure import Measures, appearance, firing
from featurewatch.workers.verdicts.succession import Share, shares

log = structlog.get_logger("featurewatch.worker")

STRENGTHENED = 1.5
"""A feature that grew by this may be the successor of one that weakened, beside those that are new."""


def judge_features(
    context: OnboardingContext,
    basis: Basis,
    measures: Measures,
    activations: Activations,
    gone: list[int],
    readability_before: np.ndarray,
) -> tuple[Evidence, Judgement]:
    """Evidence and judgement of every feature.

    gone: numbers that are not there at the parent; readability_before: [m] at the parent, NaN where it has none.
    """
    firings, documents = firing(basis, activations.document)
    replicates = {key: value.numpy() for key, value in measures.replicates.items()}
    found = appearance(
        measures.born_share, measures.born_share_se, measures.replicates["strength_ratio"], measures.baseline_z
    )
    readability = measures.per_hook["readability"].amax(0).numpy()
    squared = replicates["strength"] ** 2
    written = squared[0] >= BASELINE_Z * standard_error(squared)
    readable = np.nan_to_num(readability) >= context.policy.min_readability
    parents = measures.parent_readability.numpy()
    readability_before = np.where(np.isnan(readability_before), parents, readability_before)
    # Of the new columns those are new features that are surely written here, can be read here, and are not held by
    # the parent as well: those that it holds were there before.
    born = basis.born.numpy() & written & readable & ~held(found, readability, readability_before, context.policy)
    evidence = Evidence(
        projection=replicates["projection"],
        strength_ratio=replicates["strength_ratio"],
        orthogonal=replicates["orthogonal"],
        firings=firings,
        documents=documents,
        readability=readability,
        readability_before=readability_before,
        baseline_z=measures.baseline_z.numpy(),
        there_before=~np.isin(basis.numbers.numpy(), gone),
        born_here=born,
        comparison=context.comparison,
    )
    first = judge(evidence, context.policy)
    candidates = np.flatnonzero(born | (np.nan_to_num(first.projection) > STRENGTHENED))
    strength, ratio = replicates["strength"][0], replicates["strength_ratio"][0]
    before = np.nan_to_num(strength / np.where(ratio > 0, ratio, np.nan))
    carried = shares(basis.code.to_scipy(), np.flatnonzero(first.weakened), candidates, before, strength)
    evidence.successors = _successors(carried)
    return evidence, judge(evidence, context.policy)


def _successors(carried: dict[int, dict[int, Share]]) -> dict[int, list[Successor]]:
    """Name the kinds: one successor, one of several, or one that takes the place of several."""
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


def readability_at_parent(execution: Execution, context: OnboardingContext, basis: Basis) -> np.ndarray:
    """[m] of the basis' features, NaN of those that the parent's code does not have."""
    if context.parent is None:
        return np.full(basis.code.m, np.nan, dtype=np.float32)
    with execution.read() as session:
        return verdicts.readability(session, context.parent.id, basis.numbers.numpy())


def gone_at_parent(execution: Execution, context: OnboardingContext) -> list[int]:
    """Numbers of the features that the parent lost, or had lost before."""
    if context.parent is None:
        return []
    with execution.read() as session:
        return verdicts.gone(session, context.parent.id)
