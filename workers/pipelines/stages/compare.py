"""Comparing a checkpoint with its parent: one code path for onboarding, joint fits, nulls and restored dictionaries."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial

from featurewatch.service.recording import verdicts
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared.basis import Basis
from featurewatch.workers.pipelines.shared.context import OnboardingContext
from featurewatch.workers.pipelines.shared.pairing import ParentPair, pair_with_parent
from featurewatch.workers.pipelines.shared.sources import Activations
from featurewatch.workers.pipelines.stages.activity import read_activity
from featurewatch.workers.pipelines.stages.harvest import open_earlier
from featurewatch.workers.pipelines.stages.judge import ParentComparison, judge_pair
from featurewatch.workers.pipelines.stages.measure import measure_checkpoint


def open_pair(execution: Execution, context: OnboardingContext, activations: Activations) -> ParentPair:
    """The checkpoint beside its stored parent, if it has one. RunErrors of `open_earlier` and `pair_with_parent`."""
    if context.parent is None:
        return ParentPair(context, activations)
    with execution.read() as session:
        gone = verdicts.gone(session, context.parent.id)
    return pair_with_parent(execution, context, activations, open_earlier(execution, context, context.parent), gone)


@contextmanager
def compare_with_parent(
    execution: Execution, pair: ParentPair, basis: Basis, *, in_stages: bool = True
) -> Iterator[ParentComparison]:
    """Measure a checkpoint against its parent, and judge every feature. The body belongs to the stage `judge`.

    A first checkpoint is measured against itself. `in_stages`: show `measure` and `judge` as stages of the run.
    """
    stage = execution.stage if in_stages else nullcontext
    basis = replace(basis)  # it keeps the decoders of this pair, and a joint fit compares several
    with stage("measure"):
        measurements = measure_checkpoint(execution, pair, basis)
    with stage("judge"):
        yield judge_pair(execution, pair, basis, measurements, partial(read_activity, execution, pair, basis))
