"""Onboarding a checkpoint: harvest -> fit, extend or refit -> measure -> judge.

Every stage stores its result under a name made from its inputs, and is skipped where that exists: a run that was
killed resumes where it stopped. Nothing about the family changes before the one transaction at the end.
"""

from dataclasses import replace

import structlog

from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.runs import calibrate
from featurewatch.workers.pipelines.runs.joint_fit import fit_jointly
from featurewatch.workers.pipelines.shared import files
from featurewatch.workers.pipelines.shared.context import load_context
from featurewatch.workers.pipelines.stages import record
from featurewatch.workers.pipelines.stages.backfill import backfill
from featurewatch.workers.pipelines.stages.compare import compare_with_parent, open_pair
from featurewatch.workers.pipelines.stages.extend import extend_dictionary
from featurewatch.workers.pipelines.stages.fit import fit_dictionary
from featurewatch.workers.pipelines.stages.harvest import harvest_activations
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
        return fit_jointly(execution, context, harvest)
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
