"""The first fit over several checkpoints at once, such as base and chat, or two sizes; it judges all of them."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from featurewatch.service.verdicts import logic as verdicts
from featurewatch.service.verdicts.judge import GONE, Evidence, Judgement
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared.basis import Basis
from featurewatch.workers.pipelines.shared.context import EarlierCheckpoint, OnboardingContext, ParentCheckpoint
from featurewatch.workers.pipelines.shared.pairing import pair
from featurewatch.workers.pipelines.shared.sources import Activations
from featurewatch.workers.pipelines.stages import record
from featurewatch.workers.pipelines.stages.fit import fit_dictionary
from featurewatch.workers.pipelines.stages.harvest import open_earlier
from featurewatch.workers.pipelines.stages.judge import judge_features
from featurewatch.workers.pipelines.stages.measure import load_references, measure_checkpoint
from featurewatch.workers.pipelines.stages.record import describe_outcome


def fit_together(
    execution: Execution, context: OnboardingContext, activations: Activations, folder: str, positions: dict[str, Any]
) -> None:
    """Fit over the checkpoints that wait and this one, judge each against its parent, and write all of it."""
    widths = dict(zip(context.hook_points, activations.widths, strict=True))
    newest = EarlierCheckpoint(
        context.checkpoint_id, context.name, context.hook_points, widths, dict.fromkeys(widths, folder), {},
        uri=context.uri, adapter=context.adapter,
    )  # fmt: skip
    members = [*context.together, newest]
    opened = [*(open_earlier(execution, context, one) for one in context.together), activations]
    folders = [one.activations[one.hook_points[0]] for one in members]
    with execution.stage("fit"):
        basis = fit_dictionary(execution, context, opened, folders)
    found: list[tuple[str, verdicts.Outcome]] = []
    parent: ParentCheckpoint | None = None
    last: tuple[Activations, Evidence, Judgement] | None = None
    for member, read, place in zip(members, opened, folders, strict=True):
        # The first one's record gives the features their ids.
        first = context.n_features if parent is None else context.n_features + basis.code.m
        one = replace(
            context, checkpoint_id=member.id, name=member.name, hook_points=member.hook_points, parent=parent,
            n_features=first, uri=member.uri, adapter=member.adapter,
        )  # fmt: skip
        outcome, last, dictionaries = _judged(execution, one, basis, read, place, positions, last)
        found.append((member.id, outcome))
        parent = ParentCheckpoint(
            member.id, member.name, member.hook_points, member.widths, member.activations, dictionaries,
            uri=member.uri, adapter=member.adapter, code=basis.artifact, generation=context.generation,
        )  # fmt: skip
    record.write(execution, found)


def _judged(
    execution: Execution,
    context: OnboardingContext,
    basis: Basis,
    read: Activations,
    folder: str,
    positions: dict[str, Any],
    last: tuple[Activations, Evidence, Judgement] | None,
) -> tuple[verdicts.Outcome, tuple[Activations, Evidence, Judgement], dict[str, str]]:
    """One checkpoint's outcome, what its child is judged against, and its dictionaries. last: of its parent."""
    parent, references, gone, own = None, None, list[int](), read
    before = np.full(basis.code.m, np.nan, dtype=np.float32)
    if last is not None:
        context, read, parent = pair(context, read, last[0])
        before = last[1].readability
        lost = np.array([status in GONE for status in last[2].status], dtype=bool)
        gone = basis.numbers[lost].tolist()
        references = load_references(execution, context, gone)
    with execution.stage("measure"):
        measures = measure_checkpoint(execution, context, basis, read, parent, references)
    with execution.stage("judge"):
        if last is not None:
            # The fit saw both, so what is new here has a column already.
            basis = replace(basis, born=torch.ones_like(basis.born))
        evidence, judgement = judge_features(context, basis, measures, read, gone, before)
        outcome = describe_outcome(execution, context, basis, measures, read, folder, positions, evidence, judgement)
    return outcome, (own, evidence, judgement), measures.dictionaries
