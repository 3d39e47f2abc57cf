"""Models: loading them with adapters, their hook points, and what follows the last layer."""

from featurewatch.workers.activations.models.hooks import list_hook_points
from featurewatch.workers.activations.models.loading import (
    check_memory,
    compute_dtype,
    load_causal,
    load_model,
    load_tokenizer,
    locate_model,
    max_tokens,
)

__all__ = [
    "check_memory",
    "compute_dtype",
    "list_hook_points",
    "load_causal",
    "load_model",
    "load_tokenizer",
    "locate_model",
    "max_tokens",
]
