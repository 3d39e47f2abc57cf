"""Labelling features with an endpoint: a label from some passages, and a score on passages of other documents.

Each label is written at once: a run that was killed resumes with the features that are left.
"""

from dataclasses import dataclass

import structlog
import torch

from featurewatch.service.features import queries as feature_queries
from featurewatch.service.kit.ids import feature_id, parse_feature_id
from featurewatch.service.labels import logic as labels
from featurewatch.service.labels import queries as label_queries
from featurewatch.service.labels.schemas import LabelIn, LabelResult, NotLabelled
from featurewatch.service.verdicts import queries as verdict_queries
from featurewatch.workers.errors import RunError
from featurewatch.workers.execution import Execution
from featurewatch.workers.labels import prompts
from featurewatch.workers.labels.endpoint import Endpoint, EndpointError
from featurewatch.workers.labels.passages import Corpus
from featurewatch.workers.labels.score import Score, balanced_accuracy
from featurewatch.workers.pipelines.shared import files

log = structlog.get_logger("featurewatch.worker")

MAX_FAILURES = 3
"""Consecutive features without an answer after which the endpoint counts as unavailable."""
TRANSIENT = ("label-endpoint-busy", "label-endpoint-unreachable")
"""Faults that may affect every feature, not only one."""


@dataclass(frozen=True)
class _LabelInputs:
    """The inputs of a run."""

    corpus: Corpus
    columns: dict[int, int]
    """feature number -> column of the code"""
    promoted: dict[int, list[str]]
    generation: int


def run(execution: Execution) -> None:
    """Label the features of a run that it has not labelled yet."""
    request = LabelIn.model_validate(execution.params)
    endpoint = Endpoint(execution.settings, execution.check)
    numbers = [parse_feature_id(name) for name in request.features or []]
    with execution.stage("label"):
        inputs = _load(execution, numbers)
        with execution.read() as session:
            done = label_queries.labelled_by(session, execution.family_id, numbers, execution.run_id)
        log.info("labelling", features=len(numbers), done=len(done), model=endpoint.model)
        failed, streak = list[NotLabelled](), 0
        for i, number in enumerate(numbers):
            execution.progress(i / len(numbers), labelled=len(done), failed=len(failed))
            if number in done:
                continue
            try:
                model_label = _label_feature(endpoint, inputs, number)
            except EndpointError as error:
                failed.append(NotLabelled(feature=feature_id(number), code=error.code, detail=error.detail))
                log.warning("cannot label a feature", **failed[-1].model_dump())
                streak = streak + 1 if error.code in TRANSIENT else 0
                if error.everywhere or streak >= MAX_FAILURES:
                    progress = f"{len(done)} of {len(numbers)} features were labelled; a retry continues with the rest"
                    raise RunError(error.code, f"{error.detail}. {progress}") from error
                continue
            streak = 0
            with execution.write() as session:
                labels.record(
                    session, family_id=execution.family_id, number=number, run_id=execution.run_id, label=model_label
                )
            done.add(number)
        log.info("labelled", features=len(done), failed=len(failed))
    _finish(execution, request, endpoint.model, numbers, failed)


def _finish(execution: Execution, request: LabelIn, model: str, numbers: list[int], failed: list[NotLabelled]) -> None:
    if len(failed) == len(numbers):
        first = failed[0]
        raise RunError(first.code, f"no feature was labelled; {first.feature}: {first.detail}")
    with execution.write() as session:
        features = feature_queries.by_numbers(session, execution.family_id, numbers).values()
        ours = [feature for feature in features if feature.model_label_run == execution.run_id]
        result = LabelResult(
            checkpoint=str(request.checkpoint),
            model=model,
            labelled=len(ours),
            scored=sum(feature.model_label_score is not None for feature in ours),
            failed=failed,
        )
        execution.finish(session, result.model_dump(mode="json"))


def _label_feature(endpoint: Endpoint, inputs: _LabelInputs, number: int) -> labels.ModelLabel:
    """The label of a feature, and its score. Raises EndpointError."""
    column = inputs.columns.get(number)
    if column is None:
        raise EndpointError(
            "not-in-code",
            "this checkpoint does not have the feature: it was retired, or it belongs to another branch",
        )
    drawn = inputs.corpus.draw(column, (inputs.generation, number))
    if not drawn.shown:
        raise EndpointError("never-fires", "it never fires on the probe corpus")
    text = endpoint.ask(prompts.for_label(drawn.shown, inputs.promoted[number]), prompts.read_label)
    score: Score | None = None
    if drawn.held:
        fits = endpoint.ask(
            prompts.for_detection(text, drawn.held), lambda answer: prompts.read_fits(answer, len(drawn.held))
        )
        score = balanced_accuracy(drawn.fires, fits)
    return labels.ModelLabel(text, endpoint.model, score)


def _load(execution: Execution, numbers: list[int]) -> _LabelInputs:
    with execution.read() as session:
        positions = verdict_queries.family(session, execution.family_id).positions or {}
        code = verdict_queries.code(session, str(execution.checkpoint_id))
        features = feature_queries.by_numbers(session, execution.family_id, numbers)
        promoted = {number: list(feature.promoted_tokens) for number, feature in features.items()}
    if code is None or not positions.get("documents"):
        raise RunError("no-text", "the checkpoint has no code, or its family has no text")
    matrix, columns, _ = files.load_code(execution.artifacts.path(code.artifact), torch.device("cpu"))
    text = files.load_text(execution.artifacts, positions)
    return _LabelInputs(
        Corpus(matrix.to_scipy(), text.document, text.start, text.end, text.texts),
        {int(number): column for column, number in enumerate(columns)},
        promoted,
        code.generation,
    )
