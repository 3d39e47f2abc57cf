"""Onboarding a checkpoint: harvest -> fit, extend or refit -> measure -> judge.

Every stage stores its result under a name made from its inputs, and is skipped where that exists: a run that was
killed resumes where it stopped. Nothing about the family changes before the one transaction at the end.
"""

from dataclasses import replace

import structlog

from featurewatch.service.recording import verdicts
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.runs import calibrate
from featurewatch.workers.pipelines.shared import files
from featurewatch.workers.pipelines.shared.context import (
    EarlierCheckpoint,
    OnboardingContext,
    ParentCheckpoint,
    load_context,
)
from featurewatch.workers.pipelines.shared.pairing import ParentPair, pair_with_parent
from featurewatch.workers.pipelines.shared.sources import Activations
from featurewatch.workers.pipelines.stages import record
from featurewatch.workers.pipelines.stages.backfill import backfill
from featurewatch.workers.pipelines.stages.compare import compare_with_parent, open_pair
from featurewatch.workers.pipelines.stages.extend import extend_dictionary
from featurewatch.workers.pipelines.stages.fit import fit_dictionary
from featurewatch.workers.pipelines.stages.harvest import Harvest, harvest_activations, open_earlier
from featurewatch.workers.pipelines.stages.judge import ParentComparison
from featurewatch.workers.pipelines.stages.refit import refit_dictionary

log = structlog.get_logger("featurewatch.worker")


def run(execution: Execution) -> None:
    """Read a checkpoint, bring it into the family's dictionary, and judge every feature."""
    context = load_context(execution)
    parent = {"parent": context.parent.name} if context.parent else {}
    log.info(
        "onboarding", family=context.family_name, checkpoint=context.name, **parent, how=context.why, uri=context.uri
    )
    # This worker holds the family's lease: nobody else writes its artifacts now.
    execution.artifacts.clear(context.family_id)
    calibrate.clear(execution)
    files.clear_partial(execution.settings.data_dir / "partial")
    with execution.stage("harvest"):
        harvest = harvest_activations(execution, context)
    if context.fit == "later":
        return record.write_harvest(execution, context, harvest)
    if context.waiting:
        return _fit_jointly(execution, context, harvest)
    with execution.stage(context.fit):
        pair = open_pair(execution, context, harvest.activations)
        if context.fit == "extend":
            basis = extend_dictionary(execution, pair, harvest.folder)
        elif context.fit == "refit":
            basis = refit_dictionary(execution, pair, harvest.folder)
        else:
            basis = fit_dictionary(execution, context, [harvest.activations], [harvest.folder])
    log.info("code", features=basis.code.m, new=int(basis.born.sum()), generation=context.generation)
    with compare_with_parent(execution, pair, basis) as comparison:
        outcome = record.describe(execution, comparison, harvest.folder, harvest.positions)
        if context.fit == "extend":
            outcome = replace(outcome, past=backfill(execution, comparison))
        record.write(execution, [(context.checkpoint_id, outcome)])
    return None


def _fit_jointly(execution: Execution, context: OnboardingContext, harvest: Harvest) -> None:
    """Fit over the waiting checkpoints and this one, such as base and chat, and judge each against its parent."""
    widths = dict(zip(context.hook_points, harvest.activations.widths, strict=True))
    newest = EarlierCheckpoint(
        id=context.checkpoint_id,
        name=context.name,
        hook_points=context.hook_points,
        widths=widths,
        activations=dict.fromkeys(widths, harvest.folder),
        dictionaries={},
        uri=context.uri,
        adapter=context.adapter,
    )
    members = [*context.waiting, newest]
    opened = [*(open_earlier(execution, context, member) for member in context.waiting), harvest.activations]
    folders = [member.activations[member.hook_points[0]] for member in members]
    with execution.stage("fit"):
        basis = fit_dictionary(execution, context, opened, folders)
    outcomes: list[tuple[str, verdicts.Outcome]] = []
    parent: ParentCheckpoint | None = None
    previous: tuple[Activations, ParentComparison] | None = None
    for member, activations, folder in zip(members, opened, folders, strict=True):
        member_context = replace(
            context,
            checkpoint_id=member.id,
            name=member.name,
            hook_points=member.hook_points,
            uri=member.uri,
            adapter=member.adapter,
            parent=parent,
            # The features get their ids with the first member's record.
            n_features=context.n_features if parent is None else context.n_features + basis.code.m,
        )
        if previous is None:
            pair = ParentPair(member_context, activations)
        else:
            before, comparison = previous
            pair = pair_with_parent(
                execution, member_context, activations, before, comparison.gone, comparison.evidence.readability
            )
        with compare_with_parent(execution, pair, basis) as comparison:
            outcomes.append((member.id, record.describe(execution, comparison, folder, harvest.positions)))
        previous = activations, comparison
        parent = ParentCheckpoint(
            **vars(member) | {"dictionaries": comparison.measurements.dictionaries},
            code=basis.artifact,
            generation=context.generation,
        )
    record.write(execution, outcomes)
