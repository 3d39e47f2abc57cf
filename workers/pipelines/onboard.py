"""Onboarding a checkpoint: harvest -> fit, extend or refit -> measure -> judge.

Every stage keeps its result under a name made from its inputs and is skipped where that is there: a run that was
killed goes on where it stopped. Nothing of the family changes before the one transaction at the end.
"""

from dataclasses import replace

import structlog

from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines import calibrating, files, judging
from featurewatch.workers.pipelines.dictionary import extended, fitted
from featurewatch.workers.pipelines.harvesting import harvest_activations, open_kept
from featurewatch.workers.pipelines.measuring import load_references, measured
from featurewatch.workers.pipelines.pairing import pair
from featurewatch.workers.pipelines.past import discovered
from featurewatch.workers.pipelines.refitting import carried_references, refitted
from featurewatch.workers.pipelines.together import fit_together
from featurewatch.workers.pipelines.work import load

log = structlog.get_logger("featurewatch.worker")


def onboard(execution: Execution) -> None:
    """Read a checkpoint, bring it into the family's dictionary, and say what became of every feature."""
    judging.threads(execution)
    work = load(execution)
    after = {"parent": work.parent.name} if work.parent else {}
    log.info("onboarding", family=work.family_name, checkpoint=work.name, **after, how=work.why, uri=work.uri)
    # The family's lease is ours: nobody else writes its artifacts now.
    execution.artifacts.clear(work.family_id)
    calibrating.clear(execution)
    files.clear_partial(execution.settings.data_dir / "partial")
    with execution.stage("harvest"):
        folder, activations, positions = harvest_activations(execution, work)
    if work.fit == "later":
        return judging.wait_for_fit(execution, work, activations, folder, positions)
    if work.together:
        return fit_together(execution, work, activations, folder, positions)
    parent = references = None
    gone = judging.gone_at_parent(execution, work)
    if work.parent is None:
        with execution.stage("fit"):
            basis = fitted(execution, work, [activations], [folder])
    else:
        with execution.stage(work.fit):
            work, activations, parent = pair(work, activations, open_kept(execution, work, work.parent))
            references = load_references(execution, work, gone)
            if work.fit == "refit":
                basis = refitted(execution, work, activations, parent, folder)
                references = carried_references(execution, work, basis, references)
            else:
                compared = activations.at(activations.hook_points[: len(parent.hook_points)])
                basis = extended(execution, work, compared, parent, folder, references)
    log.info("code", features=basis.code.m, new=int(basis.born.sum()), generation=work.generation)
    with execution.stage("measure"):
        measures = measured(execution, work, basis, activations, parent, references)
    with execution.stage("judge"):
        before = judging.readability_at_parent(execution, work, basis)
        evidence, judgement = judging.judged(work, basis, measures, activations, gone, before)
        found = judging.outcome(execution, work, basis, measures, activations, folder, positions, evidence, judgement)
        if work.fit == "extend" and parent is not None:
            compared = activations.at(activations.hook_points[: len(parent.hook_points)])
            found = replace(found, past=discovered(execution, work, basis, compared, parent, evidence))
        judging.write(execution, [(work.checkpoint_id, found)])
    return None
