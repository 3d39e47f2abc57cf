"""Whole models: the body, and the head that maps its output to next-token logits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from featurewatch.workers.activations.models import loading
from featurewatch.workers.activations.models.adapters import merge_adapter
from featurewatch.workers.activations.sources.fetch import locate
from featurewatch.workers.errors import RunError


class WholeModel(NamedTuple):
    """A checkpoint in float32, for gradients and small differences."""

    body: Any
    head: Callable[[Tensor], Tensor] | None
    """Last hidden states [n, d] -> logits [n, vocabulary]; None if there is no head, or an unknown one"""
    tokenizer: Any


def load_whole(uri: str, adapter: str | None, *, roots: tuple[Path, ...], device: str, cache_dir: Path) -> WholeModel:
    """A checkpoint, with its head if it is a causal language model. Raises the RunErrors of `load_model`."""
    folder = loading.locate_model(uri, roots=roots, cache_dir=cache_dir)
    loading.check_memory(folder, device, torch.float32)
    try:
        model = loading.load_causal(folder)
    except RunError:  # an encoder, or a body alone
        body: Any
        body, tokenizer = loading.load_model(
            uri, adapter, roots=roots, device=device, dtype=torch.float32, cache_dir=cache_dir
        )
        return WholeModel(body, None, tokenizer)
    if adapter:
        merge_adapter(model.base_model, locate(adapter, roots, cache_dir))
    model.requires_grad_(False).eval().to(device)
    return WholeModel(model.base_model, _head(model), loading.load_tokenizer(folder))


def _head(model: Any) -> Callable[[Tensor], Tensor] | None:
    """The head, if it reproduces the whole model's logits and the model is causal."""
    output, config = model.get_output_embeddings(), model.config
    if output is None:
        return None
    factor = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)

    def head(x: Tensor) -> Tensor:
        logits: Tensor = output(x) * factor
        return logits if cap is None else (logits / cap).tanh() * cap

    ids = torch.arange(6, device=model.device)[None] % config.vocab_size
    with torch.no_grad():
        whole, parts = model(input_ids=ids).logits[0], head(model.base_model(input_ids=ids).last_hidden_state[0])
        prefix = model(input_ids=ids[:, :3]).logits[0]
    same = torch.allclose(whole, parts, rtol=1e-3, atol=1e-3)
    causal = torch.allclose(whole[:3], prefix, rtol=1e-2, atol=1e-2)
    return head if same and causal else None
