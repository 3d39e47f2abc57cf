"""Checks a model's config against its tensors before anything builds the model that the config describes.

Only what all architectures have in common is compared: the number of layers with the numbers in the tensor names, and
width and vocabulary with the shapes. All other sizes must be plausible for such tensors.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from featurewatch.service.checkpoints.faults import UnusableError

# The largest models on the hub have about 100,000 tensors.
MAX_MODEL_TENSORS = 500_000
# Smaller numbers are cheap whatever they count, and configs carry many that their model never uses.
_HARMLESS = 65_536
_HARMLESS_LAYERS = 1_024
# Longer than any model's context (Llama 4 Scout: 10,485,760).
_MOST_POSITIONS = 2**24

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "block_count")
# Multi-token prediction layers: stored after the others in the files, but not part of the model.
_FURTHER_LAYERS = ("num_nextn_predict_layers", "nextn_predict_layers")
_WIDTH = ("hidden_size", "n_embd", "d_model", "dim", "embedding_length")
# ALBERT and looped models apply the same layers up to this many times and count each pass as a layer.
_MOST_ROUNDS = 16
_NUMBER = re.compile(r"(?:^|\.)(\d{1,9})(?=\.)")
_LAYER_COUNT = re.compile(r"(layers?|blocks?|block_count|stages)$")
_SIZE = re.compile(
    r"((^|_)(dim|dims|(?<!chunk_)size|heads?|experts|groups|rank|channels|inner|embd|embed|state|ff|kv|model|width|hash_buckets)"
    r"|feed_forward_length|embedding_length|key_length|value_length|_count)$"
)
_POSITIONS = re.compile(r"(^|_)(positions|position_embeddings|ctx|seq_len|seq_length|context_length)$")


@dataclass
class Census:
    """Totals over the headers of a model's files: tensors, dimensions, and the numbered layers of each stack."""

    tensors: int = 0
    elements: int = 0
    dimensions: set[int] = field(default_factory=set)
    layers: dict[str, set[int]] = field(default_factory=dict)
    """`model.layers` -> {0, 1, ...}: the first number in a tensor's name is its layer."""

    def add(self, name: str, shape: Iterable[int]) -> None:
        """Count one tensor. Raises UnusableError `too-large` if there are too many."""
        self.tensors += 1
        if self.tensors > MAX_MODEL_TENSORS:
            raise UnusableError("too-large", f"The model has more than {MAX_MODEL_TENSORS:,} tensors.")
        elements = 1
        for size in shape:
            self.dimensions.add(size)
            elements *= size
        self.elements += elements
        if number := _NUMBER.search(name):
            self.layers.setdefault(name[: number.start()], set()).add(int(number[1]))

    @property
    def largest(self) -> int:
        """The largest dimension of any tensor."""
        return max(self.dimensions, default=0)


def layer_count(config: dict[str, Any]) -> int | None:
    """Number of layers; multimodal models have it in `text_config`. None if the config does not give it."""
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and (count := _first(part, _LAYERS)) is not None and count > 0:
            return count
    return None


def check_config(config: dict[str, Any], census: Census, name: str) -> None:
    """Raise UnusableError `config-mismatch` if the config in file `name` does not describe these tensors."""
    _check_layers(config, census, name)
    # Quantised weights are packed, so their shapes do not show the model's sizes.
    if "quantization_config" not in config:
        text = config.get("text_config")
        _check_widths(text if isinstance(text, dict) else config, census, name)
    for key, value in _numbers(config):
        if _LAYER_COUNT.search(key):
            limit = max(_HARMLESS_LAYERS, census.tensors)
        elif _POSITIONS.search(key):
            limit = _MOST_POSITIONS
        elif _SIZE.search(key):
            limit = max(_HARMLESS, census.largest)
        else:
            continue
        if value > limit:
            raise UnusableError(
                "config-mismatch",
                f"{name}: {key} is {value}, which is impossible for {census.tensors} tensors with dimensions up to "
                f"{census.largest}.",
            )


def _check_layers(config: dict[str, Any], census: Census, name: str) -> None:
    expected = layer_count(config)
    if expected is None:
        return
    further = max((_first(part, _FURTHER_LAYERS) or 0) for part in _parts(config))
    counts = {len(numbers) for numbers in census.layers.values()}
    fits = any(count * _MOST_ROUNDS >= expected and expected % count == 0 for count in counts)
    if not fits and expected + further not in counts:
        actual = f"have {max(counts)}" if counts else "have no numbered layers"
        raise UnusableError("config-mismatch", f"{name} specifies {expected} layers, but the tensors {actual}.")


def _check_widths(part: dict[str, Any], census: Census, name: str) -> None:
    for key in _WIDTH:
        value = part.get(key)
        if type(value) is int and value > 0 and value not in census.dimensions:
            raise UnusableError(
                "config-mismatch", f"{name}: {key} is {value}, but no tensor has a dimension of that size."
            )
    vocabulary = part.get("vocab_size")
    # Embeddings may hold more than the vocabulary, e.g. rows for images.
    if type(vocabulary) is int and vocabulary > census.largest:
        raise UnusableError(
            "config-mismatch",
            f"{name}: vocab_size is {vocabulary}, but the largest dimension of any tensor is {census.largest}.",
        )


def _parts(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield config
    if isinstance(config.get("text_config"), dict):
        yield config["text_config"]


def _first(part: dict[str, Any], keys: Iterable[str]) -> int | None:
    return next((part[key] for key in keys if type(part.get(key)) is int), None)


def _numbers(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Every integer in a config with the name of its member, or of the list that contains it."""
    stack: list[tuple[str, Any]] = [("", config)]
    while stack:
        key, value = stack.pop()
        members = value.items() if isinstance(value, dict) else ((key, part) for part in value)
        for name, part in members:
            if isinstance(part, dict | list):
                stack.append((name, part))
            elif type(part) is int:
                yield name, part
