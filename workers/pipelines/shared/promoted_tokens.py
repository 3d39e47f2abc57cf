"""Which tokens new features promote: their decoder rows through the logit lens of the checkpoint's own head."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from featurewatch.service.kit.hook_points import depth
from featurewatch.workers.activations.models import load_tokenizer, locate_model
from featurewatch.workers.activations.models.unembedding import promoted, read_unembedding, token_texts
from featurewatch.workers.activations.sources import ACTIVATIONS_PREFIX, locate
from featurewatch.workers.activations.sources.identity import Verified
from featurewatch.workers.activations.tensorfiles import write_text
from featurewatch.workers.errors import REFUSALS, RunError
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared.context import OnboardingContext, device_of
from featurewatch.workers.pipelines.shared.identity import verified_checkpoint, watched

TOKENS = 10
"""Promoted tokens kept of each feature, and as many that it lowers."""
ROWS = 2048
"""Features at once: with a block of the vocabulary their logits take 64 MB."""

Logits = dict[str, list[list[Any]]]
"""`{"promoted": [[token, value], ...], "demoted": ...}`, largest first; empty where there is nothing to say."""


def token_logits(
    execution: Execution, context: OnboardingContext, columns: np.ndarray, dictionaries: dict[str, str]
) -> tuple[list[Logits], dict[str, Any]]:
    """Logits of the features of some columns [n], and for the checkpoint's quality: where they were taken, or why not.

    A feature's row is that of the deepest hook point: the lens leaves out what later layers make of it. What is not
    to be had is no error: labels are text for people.
    """
    if not len(columns):
        return [], {}
    hook = max(dictionaries, key=depth)
    name = context.artifact("promoted", suffix=".json", dictionary=dictionaries[hook], columns=columns.tolist())
    if not execution.artifacts.exists(name):
        try:
            found = _through_the_head(execution, context, _rows(execution.artifacts.path(dictionaries[hook]), columns))
        except (RunError, OSError) as error:
            if isinstance(error, RunError) and error.code in REFUSALS:
                raise
            why = error.detail if isinstance(error, RunError) else str(error)
            return [{} for _ in columns], {"logit_lens": {"none": why}}
        with execution.artifacts.create(name) as place:
            write_text(place, json.dumps(found))
    return json.loads(execution.artifacts.path(name).read_text(encoding="utf-8")), {"logit_lens": {"hook_point": hook}}


def _through_the_head(execution: Execution, context: OnboardingContext, rows: Tensor) -> list[Logits]:
    if context.uri.startswith(ACTIVATIONS_PREFIX):
        raise RunError("no-unembedding", "activations that were brought along come without a head")
    with (
        verified_checkpoint(execution, context.checkpoint_id) as (_, checkpoint),
        watched(execution, checkpoint) as check,
    ):
        return _of_checkpoint(execution, checkpoint, rows, check)


def _of_checkpoint(execution: Execution, checkpoint: Verified, rows: Tensor, check: Callable[[], None]) -> list[Logits]:
    roots, cache = checkpoint.roots, execution.settings.cache_dir
    folder = locate_model(checkpoint.uri, roots=roots, cache_dir=cache)
    head = read_unembedding(folder, locate(checkpoint.adapter, roots, cache) if checkpoint.adapter else None)
    if head.entry.shape[1] != rows.shape[1]:
        raise RunError("no-unembedding", f"the head reads {head.entry.shape[1]} values, rows have {rows.shape[1]}")
    tokenizer = load_tokenizer(folder)
    parts = [
        promoted(part.to(device_of(execution)), head, TOKENS, tokens=len(tokenizer), check=check)
        for part in rows.split(ROWS)
    ]
    ids, values, low_ids, low_values = (torch.cat(tensors).cpu() for tensors in zip(*parts, strict=True))
    texts = token_texts(tokenizer, torch.cat([ids, low_ids], 1).unique().tolist())
    there = (rows.norm(dim=1) > 0).tolist()  # what is written nowhere promotes nothing
    return [
        {"promoted": _named(ids[row], values[row], texts), "demoted": _named(low_ids[row], low_values[row], texts)}
        if there[row]
        else {}
        for row in range(len(rows))
    ]


def _named(ids: Tensor, values: Tensor, texts: dict[int, str]) -> list[list[Any]]:
    return [[texts[one], round(value, 4)] for one, value in zip(ids.tolist(), values.tolist(), strict=True)]


def _rows(path: Path, columns: np.ndarray) -> Tensor:
    """Decoder rows [n, d] of some columns."""
    with safe_open(str(path), framework="pt") as file:
        decoder: Tensor = file.get_tensor("decoder")
    return decoder[torch.from_numpy(columns)].float()
