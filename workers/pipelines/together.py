"""The first fit over several checkpoints at once, such as base and chat, or two sizes; it judges all of them."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from featurewatch.service.verdicts import logic as verdicts
from featurewatch.service.verdicts.judge import Evidence, Judgement
from featurewatch.service.verdicts.statuses import GONE
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines import judging
from featurewatch.workers.pipelines.dictionary import Basis, fitted
from featurewatch.workers.pipelines.harvesting import open_kept
from featurewatch.workers.pipelines.measuring import load_references, measured
from featurewatch.workers.pipelines.pairing import pair
from featurewatch.workers.pipelines.sources import Activations
from featurewatch.workers.pipelines.work import Kept, Parent, Work


def fit_together(
    execution: Execution, work: Work, activations: Activations, folder: str, positions: dict[str, Any]
) -> None:
    """Fit over the checkpoints that wait and this one, judge each against its parent, and write all of it."""
    widths = dict(zip(work.hook_points, activations.widths, strict=True))
    newest = Kept(
        work.checkpoint_id, work.name, work.hook_points, widths, dict.fromkeys(widths, folder), {},
        uri=work.uri, adapter=work.adapter,
    )  # fmt: skip
    members = [*work.together, newest]
    opened = [*(open_kept(execution, work, one) for one in work.together), activations]
    folders = [one.activations[one.hook_points[0]] for one in members]
    with execution.stage("fit"):
        basis = fitted(execution, work, opened, folders)
    found: list[tuple[str, verdicts.Outcome]] = []
    parent: Parent | None = None
    last: tuple[Activations, Evidence, Judgement] | None = None
    for member, read, place in zip(members, opened, folders, strict=True):
        # The first one's record gives the features their ids.
        first = work.n_features if parent is None else work.n_features + basis.code.m
        one = replace(
            work, checkpoint_id=member.id, name=member.name, hook_points=member.hook_points, parent=parent,
            n_features=first, uri=member.uri, adapter=member.adapter,
        )  # fmt: skip
        outcome, last, dictionaries = _judged(execution, one, basis, read, place, positions, last)
        found.append((member.id, outcome))
        parent = Parent(
            member.id, member.name, member.hook_points, member.widths, member.activations, dictionaries,
            uri=member.uri, adapter=member.adapter, code=basis.artifact, generation=work.generation,
        )  # fmt: skip
    judging.write(execution, found)


def _judged(
    execution: Execution,
    work: Work,
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
        work, read, parent = pair(work, read, last[0])
        before = last[1].readability
        lost = np.array([status in GONE for status in last[2].status], dtype=bool)
        gone = basis.numbers[lost].tolist()
        references = load_references(execution, work, gone)
    with execution.stage("measure"):
        measures = measured(execution, work, basis, read, parent, references)
    with execution.stage("judge"):
        if last is not None:
            # The fit saw both, so what is new here has a column already.
            basis = replace(basis, born=torch.ones_like(basis.born))
        evidence, judgement = judging.judged(work, basis, measures, read, gone, before)
        outcome = judging.outcome(execution, work, basis, measures, read, folder, positions, evidence, judgement)
    return outcome, (own, evidence, judgement), measures.dictionaries
