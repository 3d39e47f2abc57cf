"""Calibrating a family: how often do its thresholds raise a false alarm where nothing has changed?

Each null (see `stages.nulls`) is a stage, and its result is stored at once: a run that was killed resumes with the
nulls that are left. Nothing about the family changes and no alert is raised. Intermediate artifacts are removed at the
end; the result stays with the run.
"""

import shutil
from contextlib import suppress

import structlog

from featurewatch.service.calibrations.schemas import CalibrationIn, CalibrationResult, NullResult, total
from featurewatch.service.families.calibration import NullName
from featurewatch.service.kit.db import AWAY
from featurewatch.service.verdicts import queries as verdict_queries
from featurewatch.workers.activations.tensorfiles import write_text
from featurewatch.workers.errors import REFUSALS, LeaseLostError, RunError, WorkerStoppingError
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared.context import OnboardingContext, load_against_itself
from featurewatch.workers.pipelines.stages.false_alarms import rehearse_rules, summarize, summed_grid, unavailable
from featurewatch.workers.pipelines.stages.nulls import NullExperiment

log = structlog.get_logger("featurewatch.worker")


def run(execution: Execution) -> None:
    """Judge every null of a checkpoint that the run asks for."""
    try:
        _calibrate(execution)
    except (LeaseLostError, WorkerStoppingError, *AWAY):
        raise  # the next attempt resumes from the results so far
    except Exception:
        clear(execution)
        raise
    clear(execution)


def clear(execution: Execution) -> None:
    """Remove intermediate artifacts of the family's calibrations: this one, and any whose worker was killed for good.

    Call only while holding the family's lease.
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
    options = CalibrationIn.model_validate(execution.params)
    experiment = NullExperiment(execution, context, options)
    results = []
    for null in options.nulls:
        with execution.stage(null):
            result = _result(execution, context, experiment, null)
            results.append(result)
            if result.unavailable:
                log.warning("null unavailable", null=null, reason=result.unavailable.detail)
            else:
                rate = result.checkpoints
                log.info("null", null=null, comparisons=rate.of, false_alarms=rate.alarms)
    available = [result for result in results if result.unavailable is None]
    if not available:
        reasons = "; ".join(f"{result.null}: {result.unavailable.detail}" for result in results if result.unavailable)
        raise RunError("no-null", f"none of the nulls is available. {reasons}")
    final = CalibrationResult(
        checkpoint=context.name,
        policy=context.policy,
        checkpoints=total([result.checkpoints for result in available]),
        features=total([result.features for result in available]),
        alerts=sum(alert.comparisons for result in available for alert in result.alerts),
        nulls=results,
        grid=summed_grid(available),
    )
    with execution.write() as session:
        execution.finish(session, final.model_dump(mode="json"))


def _result(execution: Execution, context: OnboardingContext, experiment: NullExperiment, null: NullName) -> NullResult:
    """The result of a null, stored so that another attempt need not compute it again."""
    name = f"{context.family_id}/result-{null}.json"
    if execution.artifacts.exists(name):
        return NullResult.model_validate_json(execution.artifacts.path(name).read_text(encoding="utf-8"))
    try:
        comparisons, settings = experiment.compare(null)
    except RunError as error:
        if error.code in REFUSALS:
            raise
        result = unavailable(null, error.code, error.detail)
    else:
        with execution.read() as session:
            before = verdict_queries.statuses(session, context.checkpoint_id)
            alerts = rehearse_rules(session, execution.family_id, comparisons, before)
        result = summarize(null, comparisons, context.policy, settings, alerts)
    with execution.artifacts.create(name) as place:
        write_text(place, result.model_dump_json())
    return result
