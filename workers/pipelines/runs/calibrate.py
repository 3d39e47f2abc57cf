"""Calibrating a family: how often do its thresholds raise a false alarm where nothing has changed?

Each null (see `nulls`) is a stage, and its result is kept as soon as it is there: a run that was killed goes on with
those that are left. Nothing of the family changes, no alert is raised, and what was made on the way is removed at the
end; the result stays with the run.
"""

import shutil
from contextlib import suppress

import structlog

from featurewatch.service.calibrations.schemas import CalibrationIn, CalibrationResult, NullName, NullResult, total
from featurewatch.service.kit.db import AWAY
from featurewatch.service.verdicts import queries as verdict_queries
from featurewatch.workers.activations.tensorfiles import write_text
from featurewatch.workers.errors import REFUSALS, LeaseLostError, RunError, WorkerStoppingError
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared.context import OnboardingContext, load_against_itself
from featurewatch.workers.pipelines.stages.false_alarms import rehearsed, result, summed_grid, unavailable
from featurewatch.workers.pipelines.stages.judge import gone_at_parent
from featurewatch.workers.pipelines.stages.nulls import NullExperiment

log = structlog.get_logger("featurewatch.worker")


def calibrate(execution: Execution) -> None:
    """Judge every null of a checkpoint that the run asks for."""
    try:
        _calibrate(execution)
    except (LeaseLostError, WorkerStoppingError, *AWAY):
        raise  # another attempt goes on with what is there
    except Exception:
        clear(execution)
        raise
    clear(execution)


def clear(execution: Execution) -> None:
    """Remove what calibrations of the family have made: this one, and those whose workers were killed for good.

    Only for who holds the family's lease.
    """
    execution.artifacts.remove(f"{execution.family_id}/calibrations")
    for path in (execution.settings.data_dir / "partial").glob(f"{execution.family_id}-calibrations-*"):
        with suppress(FileNotFoundError):
            shutil.rmtree(path)


def _calibrate(execution: Execution) -> None:
    if execution.attempt == 1:
        clear(execution)
    context = load_against_itself(execution)
    execution.artifacts.clear(context.family_id)
    asked = CalibrationIn.model_validate(execution.params)
    experiment = NullExperiment(execution, context, asked, gone_at_parent(execution, context))
    results = []
    for null in asked.nulls:
        with execution.stage(null):
            results.append(one := _result(execution, context, experiment, null))
            if one.unavailable:
                log.warning("no such null", null=null, why=one.unavailable.detail)
            else:
                log.info("null", null=null, comparisons=one.checkpoints.of, false_alarms=one.checkpoints.alarms)
    had = [one for one in results if one.unavailable is None]
    if not had:
        reasons = "; ".join(f"{one.null}: {one.unavailable.detail}" for one in results if one.unavailable)
        raise RunError("no-null", f"none of the nulls could be had: {reasons}")
    final = CalibrationResult(
        checkpoint=context.name,
        policy=context.policy,
        checkpoints=total([one.checkpoints for one in had]),
        features=total([one.features for one in had]),
        alerts=sum(alert.comparisons for one in had for alert in one.alerts),
        nulls=results,
        grid=summed_grid(had),
    )
    with execution.write() as session:
        execution.finish(session, final.model_dump(mode="json"))


def _result(execution: Execution, context: OnboardingContext, experiment: NullExperiment, null: NullName) -> NullResult:
    """What is said of a null; kept, so that another attempt need not do it again."""
    name = f"{context.family_id}/result-{null}.json"
    if execution.artifacts.exists(name):
        return NullResult.model_validate_json(execution.artifacts.path(name).read_text(encoding="utf-8"))
    try:
        comparisons, settings = experiment.compare(null)
    except RunError as error:
        if error.code in REFUSALS:
            raise
        found = unavailable(null, error.code, error.detail)
    else:
        with execution.read() as session:
            before = verdict_queries.statuses(session, context.checkpoint_id)
            alerts = rehearsed(session, execution.family_id, comparisons, before)
        found = result(null, comparisons, context.policy, settings, alerts)
    with execution.artifacts.create(name) as place:
        write_text(place, found.model_dump_json())
    return found
