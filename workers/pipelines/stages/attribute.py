"""A checkpoint made ready for attribution: its model, its texts with their code, and its dictionaries."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from featurewatch.workers.activations import HarvestSpec
from featurewatch.workers.activations.harvest.reading import TokenizedCorpus, tokenize_corpus
from featurewatch.workers.activations.models import max_tokens
from featurewatch.workers.activations.models.heads import load_whole
from featurewatch.workers.activations.models.hooks import HookPoint, choose_hook_points, in_order, layer_stack
from featurewatch.workers.activations.positions import Reader
from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.dependencies.passages import deal_folds
from featurewatch.workers.dependencies.reading import Dictionary, Passage, Reading
from featurewatch.workers.errors import RunError
from featurewatch.workers.verdicts.folds import FOLDS


class TracedModel(NamedTuple):
    """What attribution and effects start from."""

    reading: Reading
    points: list[HookPoint]
    """`reading.hook_points`, with their layers"""
    head: Callable[[Tensor], Tensor] | None
    tokenizer: Any
    valid: Tensor
    """bool [positions] where this model has a token, and is no sink"""


def trace(
    spec: HarvestSpec,
    code: Code,
    dictionaries: dict[str, Dictionary],
    valid: np.ndarray | None,
    check: Callable[[], None],
) -> TracedModel:
    """Load a checkpoint's model and read the corpus with its tokenizer.

    dictionaries: of each hook point of the spec. valid: bool [positions], which of them the harvest kept; None: all
    that the model has a token at. RunErrors of `load_whole`, `choose_hook_points`, `tokenize_corpus`.
    """
    whole = load_whole(spec.uri, spec.adapter, roots=spec.roots, device=spec.device, cache_dir=spec.cache_dir)
    points = in_order(choose_hook_points(whole.body, spec.hook_points))
    corpus = tokenize_corpus(
        spec.corpus,
        Reader(whole.tokenizer, max_tokens(whole.body)),
        context_length=spec.context_length,
        skip_tokens=spec.skip_tokens,
        positions=spec.positions,
        check=check,
    )
    if code.n != len(corpus.positions):
        raise RunError("wrong-positions", "the code belongs to other positions than the probe corpus")
    there = torch.from_numpy(corpus.token >= 0)
    if valid is not None:
        there &= torch.from_numpy(valid)
    passages = _passages(corpus, [document.id for document in spec.corpus], there)
    layers = layer_stack(whole.body)[2]
    skippable = {p.name: list(layers[: p.layer + 1]) for p in points if p.kind.is_residual}
    reading = Reading(whole.body, list(points), dictionaries, code, passages, skippable)
    return TracedModel(reading, points, whole.head, whole.tokenizer, there)


def _passages(corpus: TokenizedCorpus, documents: Sequence[int], valid: Tensor) -> list[Passage]:
    """Documents with positions."""
    folds, found = deal_folds(documents, FOLDS), []
    for document, tokens, part in zip(documents, corpus.tokens, corpus.rows, strict=True):
        rows = torch.arange(part.start, part.stop)[valid[part]]
        if len(rows):
            at = torch.from_numpy(corpus.token[rows.numpy()])
            found.append(Passage(torch.from_numpy(tokens.ids), rows, at, folds[document]))
    return found
