"""Where a checkpoint's files come from: URIs, fetching, sealed caches, and verification of what is read."""

from featurewatch.workers.activations.sources.fetch import (
    ACTIVATIONS_PREFIX,
    fingerprint,
    locate,
    locate_activations,
    safe_files,
    weight_files,
)

__all__ = ["ACTIVATIONS_PREFIX", "fingerprint", "locate", "locate_activations", "safe_files", "weight_files"]
