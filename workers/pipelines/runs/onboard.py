"""Onboarding a checkpoint: harvest -> fit, extend or refit -> measure -> judge.

Every stage keeps its result under a name made from its inputs and is skipped where that is there: a run that was
killed goes on where it stopped. Nothing of the family changes before the one transaction at the end.
"""

from dataclasses import replace

import structlog

from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.runs import calibrate
from featurewatch.workers.pipelines.runs.joint_fit import fit_together
from featurewatch.workers.pipelines.shared import files
from featurewatch.workers.pipelines.shared.context import load_context
from featurewatch.workers.pipelines.shared.pairing import pair
from featurewatch.workers.pipelines.stages import record
from featurewatch.workers.pipelines.stages.backfill import backfill
from featurewatch.workers.pipelines.stages.extend import extend_dictionary
from featurewatch.workers.pipelines.stages.fit import fit_dictionary
from featurewatch.workers.pipelines.stages.harvest import harvest_activations, open_earlier
from featurewatch.workers.pipelines.stages.judge import gone_at_parent, judge_features, readability_at_parent
from featurewatch.workers.pipelines.stages.measure import load_references, measure_checkpoint
from featurewatch.workers.pipelines.stages.record import describe_outcome
from featurewatch.workers.pipelines.stages.refit import carried_references, refit_dictionary

log = structlog.get_logger("featurewatch.worker")


def onboard(execution: Execution) -> None:
    """Read a checkpoint, bring it into the family's dictionary, and say what became of every feature."""
    context = load_context(execution)
    after = {"parent": context.parent.name} if context.parent else {}
    log.info(
        "onboarding", family=context.family_name, checkpoint=context.name, **after, how=context.why, uri=context.uri
    )
    # The family's lease is ours: nobody else writes its artifacts now.
    execution.artifacts.clear(context.family_id)
    calibrate.clear(execution)
    files.clear_partial(execution.settings.data_dir / "partial")
    with execution.stage("harvest"):
        folder, activations, positions = harvest_activations(execution, context)
    if context.fit == "later":
        return record.write_harvest(execution, context, activations, folder, positions)
    if context.together:
        return fit_together(execution, context, activations, folder, positions)
    parent = references = None
    gone = gone_at_parent(execution, context)
    if context.parent is None:
        with execution.stage("fit"):
            basis = fit_dictionary(execution, context, [activations], [folder])
    else:
        with execution.stage(context.fit):
            context, activations, parent = pair(context, activations, open_earlier(execution, context, context.parent))
            references = load_references(execution, context, gone)
            if context.fit == "refit":
                basis = refit_dictionary(execution, context, activations, parent, folder)
                references = carried_references(execution, context, basis, references)
            else:
                compared = activations.at(activations.hook_points[: len(parent.hook_points)])
                basis = extend_dictionary(execution, context, compared, parent, folder, references)
    log.info("code", features=basis.code.m, new=int(basis.born.sum()), generation=context.generation)
    with execution.stage("measure"):
        measures = measure_checkpoint(execution, context, basis, activations, parent, references)
    with execution.stage("judge"):
        before = readability_at_parent(execution, context, basis)
        evidence, judgement = judge_features(context, basis, measures, activations, gone, before)
        found = describe_outcome(
            execution, context, basis, measures, activations, folder, positions, evidence, judgement
        )
        if context.fit == "extend" and parent is not None:
            compared = activations.at(activations.hook_points[: len(parent.hook_points)])
            found = replace(found, past=backfill(execution, context, basis, compared, parent, evidence))
        record.write(execution, [(context.checkpoint_id, found)])
    return None
