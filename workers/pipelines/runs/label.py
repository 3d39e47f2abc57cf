"""Labelling features by an endpoint: a label from passages, and a score on passages of other documents.

Each label is written as soon as it is there: a run that was killed goes on with the features that are left.
"""

from dataclasses import dataclass

import structlog
import torch
from safetensors.torch import load_file

from featurewatch.service.features import queries as feature_queries
from featurewatch.service.kit.ids import feature_id, parse_feature_id
from featurewatch.service.labels import logic as labels
from featurewatch.service.labels import queries as label_queries
from featurewatch.service.labels.schemas import LabelIn, LabelResult, NotLabelled
from featurewatch.service.verdicts import queries as verdict_queries
from featurewatch.workers.activations import load_documents
from featurewatch.workers.errors import RunError
from featurewatch.workers.execution import Execution
from featurewatch.workers.labels import prompts
from featurewatch.workers.labels.endpoint import Endpoint, EndpointError
from featurewatch.workers.labels.passages import Corpus
from featurewatch.workers.labels.score import Score, balanced_accuracy
from featurewatch.workers.pipelines.shared import files

log = structlog.get_logger("featurewatch.worker")

IN_A_ROW = 3
"""So many features without an answer, one after the other: the endpoint is not there."""
AWAY = ("label-endpoint-busy", "label-endpoint-unreachable")
"""Faults that may not be about one feature alone."""


@dataclass(frozen=True)
class _LabelInputs:
    """What a run is about."""

    corpus: Corpus
    columns: dict[int, int]
    """feature number -> column of the code"""
    promoted: dict[int, list[str]]
    generation: int


def run(execution: Execution) -> None:
    """Have the features of a run labelled that have no label from it yet."""
    asked = LabelIn.model_validate(execution.params)
    endpoint = Endpoint(execution.settings, execution.check)
    numbers = [parse_feature_id(one) for one in asked.features or []]
    with execution.stage("label"):
        inputs = _load(execution, numbers)
        with execution.read() as session:
            done = label_queries.labelled_by(session, execution.family_id, numbers, execution.run_id)
        log.info("labelling", features=len(numbers), from_before=len(done), model=endpoint.model)
        failed, streak = list[NotLabelled](), 0
        for place, number in enumerate(numbers):
            execution.progress(place / len(numbers), labelled=len(done), failed=len(failed))
            if number in done:
                continue
            try:
                found = _labelled(endpoint, inputs, number)
            except EndpointError as error:
                failed.append(NotLabelled(feature=feature_id(number), code=error.code, detail=error.detail))
                log.warning("not labelled", **failed[-1].model_dump())
                streak = streak + 1 if error.code in AWAY else 0
                if error.everywhere or streak >= IN_A_ROW:
                    said = f"{error.detail}. {len(done)} of {len(numbers)} features were labelled; a retry goes on"
                    raise RunError(error.code, said) from error
                continue
            streak = 0
            with execution.write() as session:
                labels.record(
                    session, family_id=execution.family_id, number=number, run_id=execution.run_id, label=found
                )
            done.add(number)
        log.info("labelled", features=len(done), failed=len(failed))
    _finish(execution, asked, endpoint.model, numbers, failed)


def _finish(execution: Execution, asked: LabelIn, model: str, numbers: list[int], failed: list[NotLabelled]) -> None:
    if len(failed) == len(numbers):
        first = failed[0]
        raise RunError(first.code, f"no feature was labelled; {first.feature}: {first.detail}")
    with execution.write() as session:
        features = feature_queries.by_numbers(session, execution.family_id, numbers).values()
        ours = [one for one in features if one.model_label_run == execution.run_id]
        result = LabelResult(
            checkpoint=str(asked.checkpoint),
            model=model,
            labelled=len(ours),
            scored=sum(one.model_label_score is not None for one in ours),
            failed=failed,
        )
        execution.finish(session, result.model_dump(mode="json"))


def _labelled(endpoint: Endpoint, inputs: _LabelInputs, number: int) -> labels.ModelLabel:
    """A feature's label and its score. EndpointError."""
    column = inputs.columns.get(number)
    if column is None:
        raise EndpointError("not-in-code", "the checkpoint's code has no such feature: it ended in a re-fit, or is of "
                            "another branch")  # fmt: skip
    drawn = inputs.corpus.draw(column, (inputs.generation, number))
    if not drawn.shown:
        raise EndpointError("never-fires", "it fires nowhere on the probe corpus")
    text = endpoint.ask(prompts.for_label(drawn.shown, inputs.promoted[number]), prompts.read_label)
    score: Score | None = None
    if drawn.held:
        said = endpoint.ask(
            prompts.for_detection(text, drawn.held), lambda answer: prompts.read_fits(answer, len(drawn.held))
        )
        score = balanced_accuracy(drawn.fires, said)
    return labels.ModelLabel(text, endpoint.model, score)


def _load(execution: Execution, numbers: list[int]) -> _LabelInputs:
    with execution.read() as session:
        positions = verdict_queries.family(session, execution.family_id).positions or {}
        code = verdict_queries.code(session, str(execution.checkpoint_id))
        features = feature_queries.by_numbers(session, execution.family_id, numbers)
        promoted = {number: list(one.promoted_tokens) for number, one in features.items()}
    if code is None or not positions.get("documents"):
        raise RunError("no-text", "there is no code of the checkpoint, or no text of its family")
    matrix, columns, _ = files.load_code(execution.artifacts.path(code.artifact), torch.device("cpu"))
    place = load_file(execution.artifacts.path(positions["artifact"]))
    document, start, end = (place[name].numpy() for name in ("document", "start", "end"))
    texts = {one.id: one.text for one in load_documents(execution.artifacts.path(positions["documents"]))}
    return _LabelInputs(
        Corpus(matrix.to_scipy(), document, start, end, texts),
        {int(number): column for column, number in enumerate(columns)},
        promoted,
        code.generation,
    )
