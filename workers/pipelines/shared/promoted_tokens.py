"""The tokens that new features promote: their decoder rows through the checkpoint's own head (logit lens)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from featurewatch.service.checkpoints.contents import ACTIVATIONS
from featurewatch.service.kit.hook_points import depth
from featurewatch.workers.activations.models.loading import load_tokenizer, locate_model
from featurewatch.workers.activations.models.unembedding import promoted, read_unembedding, token_texts
from featurewatch.workers.activations.sources.fetch import locate
from featurewatch.workers.activations.tensorfiles import write_text
from featurewatch.workers.errors import REFUSALS, RunError
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared.context import OnboardingContext, device_of
from featurewatch.workers.pipelines.shared.identity import verified_checkpoint, watched

TOKENS = 10
"""How many promoted, and how many demoted tokens are stored for a feature."""
ROWS = 2048
"""Features per batch: with a block of the vocabulary their logits take 64 MB."""

Logits = dict[str, list[list[Any]]]
"""`{"promoted": [[token, value], ...], "demoted": ...}`, largest first. Empty if unknown."""


def token_logits(
    execution: Execution, context: OnboardingContext, columns: np.ndarray, dictionaries: dict[str, str]
) -> tuple[list[Logits], dict[str, Any]]:
    """Logits of some columns [n], and the `logit_lens` of the checkpoint's quality: where they were taken, or why not.

    Uses the rows of the deepest hook point, since the lens ignores later layers. A missing head is not an error: the
    tokens only help people to label features.
    """
    if not len(columns):
        return [], {}
    hook = max(dictionaries, key=depth)
    name = context.artifact("promoted", suffix=".json", dictionary=dictionaries[hook], columns=columns.tolist())
    if not execution.artifacts.exists(name):
        try:
            logits = _through_head(execution, context, _rows(execution.artifacts.path(dictionaries[hook]), columns))
        except (RunError, OSError) as error:
            if isinstance(error, RunError) and error.code in REFUSALS:
                raise
            reason = error.detail if isinstance(error, RunError) else str(error)
            return [{} for _ in columns], {"logit_lens": {"none": reason}}
        with execution.artifacts.create(name) as place:
            write_text(place, json.dumps(logits))
    return json.loads(execution.artifacts.path(name).read_text(encoding="utf-8")), {"logit_lens": {"hook_point": hook}}


def _through_head(execution: Execution, context: OnboardingContext, rows: Tensor) -> list[Logits]:
    if context.uri.startswith(ACTIVATIONS):
        raise RunError("no-unembedding", "this checkpoint has precomputed activations, so it has no head")
    with (
        verified_checkpoint(execution, context.checkpoint_id) as (_, checkpoint),
        watched(execution, checkpoint) as check,
    ):
        roots, cache = checkpoint.roots, execution.settings.cache_dir
        folder = locate_model(checkpoint.uri, roots=roots, cache_dir=cache)
        head = read_unembedding(folder, locate(checkpoint.adapter, roots, cache) if checkpoint.adapter else None)
        if head.entry.shape[1] != rows.shape[1]:
            raise RunError("no-unembedding", f"the head has width {head.entry.shape[1]}, the rows have {rows.shape[1]}")
        tokenizer, device = load_tokenizer(folder), device_of(execution.settings)
        parts = [
            promoted(part.to(device), head, TOKENS, tokens=len(tokenizer), check=check) for part in rows.split(ROWS)
        ]
    ids, values, low_ids, low_values = (torch.cat(tensors).cpu() for tensors in zip(*parts, strict=True))
    texts = token_texts(tokenizer, torch.cat([ids, low_ids], 1).unique().tolist())
    written = (rows.norm(dim=1) > 0).tolist()
    return [
        {"promoted": _named(ids[row], values[row], texts), "demoted": _named(low_ids[row], low_values[row], texts)}
        if written[row]
        else {}
        for row in range(len(rows))
    ]


def _named(ids: Tensor, values: Tensor, texts: dict[int, str]) -> list[list[Any]]:
    return [[texts[token], round(value, 4)] for token, value in zip(ids.tolist(), values.tolist(), strict=True)]


def _rows(path: Path, columns: np.ndarray) -> Tensor:
    """Decoder rows [n, d] of the columns."""
    with safe_open(str(path), framework="pt") as file:
        decoder: Tensor = file.get_tensor("decoder")
    return decoder[torch.from_numpy(columns)].float()
