"""Stage attribute: the sources and effects of features, from the model and the texts that it reads."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from featurewatch.service.kit.hook_points import depth
from featurewatch.service.kit.ids import feature_id
from featurewatch.workers.activations.contrast import Row, open_prompts
from featurewatch.workers.activations.harvest.reading import TokenizedCorpus, tokenize_corpus
from featurewatch.workers.activations.harvest.shards import HarvestSpec
from featurewatch.workers.activations.models.heads import load_whole
from featurewatch.workers.activations.models.hooks import (
    HookPoint,
    choose_hook_points,
    layer_stack,
    without_later_layers,
)
from featurewatch.workers.activations.models.loading import max_tokens
from featurewatch.workers.activations.positions import Reader
from featurewatch.workers.activations.sources.identity import Reference, Verified
from featurewatch.workers.activations.store import open_activations
from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.dependencies.attribution import Attribution, Options, attribute
from featurewatch.workers.dependencies.effects import Answers, Effects, activations, answer_margins, causal_effects
from featurewatch.workers.dependencies.reading import Dictionary, Passage, Reading, Target, choose_tokens, deal_folds
from featurewatch.workers.errors import RunError
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared import files
from featurewatch.workers.pipelines.shared.context import device_of
from featurewatch.workers.pipelines.shared.dependency_request import AnswerSignature, DependencyRequest
from featurewatch.workers.pipelines.shared.shared_harvest import HarvestTask
from featurewatch.workers.verdicts.folds import FOLDS

EFFECT_POSITIONS = 64
"""Positions on which effects are measured. Each is run in as many versions as there are edits, up to the head."""
DIRECTIONS = 8
TOP_LOGITS = 10
WORDS = "words"
"""Metadata of an artifact: the tokens of its columns"""


class TracedModel(NamedTuple):
    """A checkpoint made ready for attribution: its model, and its texts with their code and dictionaries."""

    reading: Reading
    points: list[HookPoint]
    """`reading.hook_points`, with their layers"""
    head: Callable[[Tensor], Tensor] | None
    tokenizer: Any
    valid: Tensor
    """bool [positions] where this model has a token that is not an attention sink"""


def trace(
    spec: HarvestSpec,
    code: Code,
    dictionaries: dict[str, Dictionary],
    valid: np.ndarray | None,
    check: Callable[[], None],
) -> TracedModel:
    """Load a checkpoint's model and read the corpus with its tokenizer.

    dictionaries: one for each hook point of the spec. valid: bool [positions] that the harvest kept; None: all where
    the model has a token. RunErrors of `load_whole`, `choose_hook_points`, `tokenize_corpus`.
    """
    whole = load_whole(spec.uri, spec.adapter, roots=spec.roots, device=spec.device, cache_dir=spec.cache_dir)
    points = sorted(choose_hook_points(whole.body, spec.hook_points), key=lambda point: depth(point.name))
    corpus = tokenize_corpus(
        spec.corpus,
        Reader(whole.tokenizer, max_tokens(whole.body)),
        context_length=spec.context_length,
        skip_tokens=spec.skip_tokens,
        positions=spec.positions,
        check=check,
    )
    if code.n != len(corpus.positions):
        raise RunError("wrong-positions", "the code's positions differ from those of the probe corpus")
    there = torch.from_numpy(corpus.token >= 0)
    if valid is not None:
        there &= torch.from_numpy(valid)
    passages = _passages(corpus, [document.id for document in spec.corpus], there)
    layers = layer_stack(whole.body)[2]
    skippable = {p.name: list(layers[: p.layer + 1]) for p in points if p.kind.is_residual}
    reading = Reading(whole.body, list(points), dictionaries, code, passages, skippable)
    return TracedModel(reading, points, whole.head, whole.tokenizer, there)


def _passages(corpus: TokenizedCorpus, documents: Sequence[int], valid: Tensor) -> list[Passage]:
    """The documents that have valid positions."""
    folds, passages = deal_folds(documents, FOLDS), []
    for document, tokens, part in zip(documents, corpus.tokens, corpus.rows, strict=True):
        rows = torch.arange(part.start, part.stop)[valid[part]]
        if len(rows):
            at = torch.from_numpy(corpus.token[rows.numpy()])
            passages.append(Passage(torch.from_numpy(tokens.ids), rows, at, folds[document]))
    return passages


def trace_checkpoint(
    execution: Execution, request: DependencyRequest, reference: Reference, checkpoint: Verified
) -> TracedModel:
    """Stage load: the verified checkpoint of a request, made ready for attribution."""
    with execution.stage("load"):
        device, artifacts = device_of(execution.settings), execution.artifacts
        task = HarvestTask(
            reference=asdict(reference),
            hook_points=request.hook_points,
            documents=request.documents,
            context_length=request.context_length,
            positions=request.positions,
            skip_tokens=request.policy.skip_tokens,
            max_norm_ratio=request.policy.max_norm_ratio,
            shard_positions=execution.settings.shard_positions,
        )
        spec = task.spec(execution.settings, artifacts, str(device), checkpoint)
        code, _, _ = files.load_code(artifacts.path(request.code), device)
        tensors = {
            hook: load_file(artifacts.path(name), device=str(device)) for hook, name in request.dictionaries.items()
        }
        valid = None
        if request.activations and artifacts.exists(f"{request.activations}/manifest.json"):
            hooks = request.hook_points
            valid = open_activations(artifacts.path(request.activations), hook_points=hooks).valid
        dictionaries = {hook: Dictionary.of(parts) for hook, parts in tensors.items()}
        return trace(spec, code, dictionaries, valid, execution.check)


def attribute_features(
    execution: Execution,
    request: DependencyRequest,
    traced: TracedModel,
    numbers: list[int],
    done: float,
    of: int,
    checkpoint: Verified,
) -> None:
    """Attribute some features, and store the sums of each. `done`: share of all `of` features before these."""
    body, columns = request.body, _columns(execution, request, numbers)
    share = len(numbers) / of

    def tick(part: float, offset: float, width: float) -> None:
        execution.check()
        execution.progress(done + share * (offset + width * part))

    targets = [_target(request, traced, number, column, body.positions) for number, column in columns.items()]
    split = 0.6 if body.effects and traced.head else 1.0
    with without_later_layers(traced.reading.model, traced.points):
        options = Options(method=body.method, steps=body.steps, folds=FOLDS)
        attributions = attribute(traced.reading, targets, options, partial(tick, offset=0.0, width=split))
    for i, (number, column) in enumerate(columns.items()):
        effects = None
        if body.effects and traced.head is not None:
            width = (1 - split) / len(columns)
            fewer = _target(request, traced, number, column, min(body.positions, EFFECT_POSITIONS))
            effects = causal_effects(
                traced.reading, traced.head, fewer, directions=DIRECTIONS, folds=FOLDS, seed=number,
                tick=partial(tick, offset=split + width * i, width=width),
            )  # fmt: skip
        tensors, words = _tensors(execution, request, traced, attributions[i], effects)
        tensors |= _margins(execution, request, traced, number, column)
        checkpoint.recheck()
        with execution.artifacts.create(request.artifact(number)) as path:
            contiguous = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
            save_file(contiguous, path, metadata={WORDS: json.dumps(words)})


def _margins(
    execution: Execution, request: DependencyRequest, traced: TracedModel, number: int, column: int
) -> dict[str, Tensor]:
    """`answers.<signature>` -> margins [3 + directions, texts], for each signature that contains the feature."""
    if traced.head is None:
        return {}
    margins = {}
    for signature in request.answer_signatures:
        if number in signature.features and (texts := _texts(signature, traced)):
            margins[f"answers.{signature.name}"] = answer_margins(
                traced.reading, traced.head, request.targets[number], column, texts, directions=DIRECTIONS, seed=number,
                check=execution.check,
            )  # fmt: skip
    return margins


def _columns(execution: Execution, request: DependencyRequest, numbers: list[int]) -> dict[int, int]:
    """Feature number -> column of the code."""
    own = load_file(execution.artifacts.path(request.code))["feature_numbers"].tolist()
    lost = sorted(set(numbers) - set(own))
    if lost:
        raise RunError(
            "feature-not-in-checkpoint",
            f"{feature_id(lost[0])} is no longer in the code of this checkpoint",
        )
    return {number: own.index(number) for number in numbers}


def _target(request: DependencyRequest, traced: TracedModel, number: int, column: int, most: int) -> Target:
    reading, code = traced.reading, traced.reading.code
    fires = (activations(code, column) > 0).cpu()
    # Seeded by the feature, so that every checkpoint is examined at the same positions.
    return choose_tokens(reading.passages, fires, traced.valid, request.targets[number], column, most, number)


def _tensors(
    execution: Execution,
    request: DependencyRequest,
    traced: TracedModel,
    attribution: Attribution,
    effects: Effects | None,
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """The stored tensors of one feature (see `service.models.DependencyGraph`), and the tokens of their columns."""
    numbers = load_file(execution.artifacts.path(request.code))["feature_numbers"]
    tokens: dict[str, Tensor] = {}
    for token, token_sums in attribution.tokens.items():  # several ids may stand for one string
        word = traced.tokenizer.decode([token])
        tokens[word] = tokens[word] + token_sums if word in tokens else token_sums
    words = {"tokens": list(tokens), "logits": list[str]()}
    tensors = {
        "counts": attribution.count,
        "values": attribution.value,
        "constant": torch.tensor(attribution.constant, dtype=torch.float64),
        "tokens": torch.stack(list(tokens.values()), 1) if tokens else torch.zeros(FOLDS, 0, dtype=torch.float64),
    }
    for hook, sums in attribution.hook_points.items():
        live = (sums.features != 0).any(0)
        tensors[f"numbers.{hook}"] = numbers[live]
        tensors[f"sums.{hook}"] = sums.features[:, live]
        tensors[f"rest.{hook}"] = torch.stack([sums.bias, sums.error, sums.uncoded], 1)
    if effects is not None and len(effects.logits):
        top = effects.logits.abs().topk(min(TOP_LOGITS, len(effects.logits))).indices
        words["logits"] = [traced.tokenizer.decode([token]) for token in top.tolist()]
        tensors |= {
            "effect.counts": effects.count, "effect.ablate": effects.ablate, "effect.amplify": effects.amplify,
            "effect.random": effects.random, "logits": effects.logits[top].double() / effects.count.sum(),
        }  # fmt: skip
    return tensors, words


def _texts(signature: AnswerSignature, traced: TracedModel) -> list[Answers]:
    """A sample of texts with the first tokens of both answers, left out where the answers begin alike."""
    sample = signature.pairs[:: max(1, -(-len(signature.pairs) // EFFECT_POSITIONS))]
    rows = [Row(row.text, row.answer) for pair in sample for row in pair]
    prompts = open_prompts(traced.reading.model, traced.tokenizer, rows, "answer", template=signature.template)
    return [
        Answers(torch.tensor(a.ids[: a.first]), a.ids[a.first], b.ids[b.first])
        for a, b in zip(prompts[::2], prompts[1::2], strict=True)
        if a.ids[: a.first] == b.ids[: b.first] and a.first > 0 and a.ids[a.first] != b.ids[b.first]
    ]
