"""A model with its dictionaries and the texts it reads, and hooks that observe or replace its activations."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from featurewatch.workers.crosscoder.code import Code

PER_DOCUMENT = 16
"""Positions taken from a document before those of other documents."""


class HookPoint(Protocol):
    """A hook point of a model: the output of `module` times `factor`."""

    @property
    def name(self) -> str: ...
    @property
    def module(self) -> nn.Module: ...
    @property
    def factor(self) -> float: ...


@dataclass(frozen=True)
class Dictionary:
    """A family's features at one source. Normalised activations are (x - mean) / scale."""

    mean: Tensor
    """[d]"""
    scale: float
    """rms / sqrt(d)"""
    decoder: Tensor
    """[m, d] in raw units of the stream"""
    bias: Tensor
    """[d] in raw units, added to the mean"""
    readout: Tensor
    """[d, m] on normalised activations"""
    readout_bias: Tensor
    """[m]"""

    @staticmethod
    def of(tensors: dict[str, Tensor]) -> "Dictionary":
        """Build from the tensors of a dictionary artifact, which are in normalised units."""
        scale = float(tensors["rms"]) / len(tensors["mean"]) ** 0.5
        return Dictionary(
            tensors["mean"],
            scale,
            tensors["decoder"] * scale,
            tensors["bias"] * scale,
            tensors["readout"],
            tensors["readout_bias"],
        )

    def read(self, x: Tensor, column: int) -> Tensor:
        """Pre-activations of a feature from raw activations: [n, d] -> [n]."""
        return (x - self.mean) @ (self.readout[:, column] / self.scale) + self.readout_bias[column]

    def constant(self, column: int) -> float:
        """The read-out of a feature for an all-zero activation."""
        weight = self.readout[:, column] / self.scale
        return float(self.readout_bias[column] - self.mean @ weight)


class Passage(NamedTuple):
    """One document as the model reads it."""

    ids: Tensor
    """int64 [t]"""
    rows: Tensor
    """int64 [r] rows of the code for the document's positions at which one of the model's tokens ends, ascending"""
    tokens: Tensor
    """int64 [r] index in `ids` of each row"""
    fold: int
    """Fold of the document, for the statistics"""


class Target(NamedTuple):
    """A feature, the hook point where it is read, and its tokens in each passage (possibly none)."""

    hook_point: str
    column: int
    tokens: Sequence[Tensor]


class Batch(NamedTuple):
    """A batch of passages, padded on the right."""

    members: list[int]
    """Index of each passage"""
    ids: Tensor
    """int64 [b, t]"""
    mask: Tensor
    """int64 [b, t]"""


@dataclass
class Reading:
    """A model's body with its hook points, in the order of the forward pass, and their dictionaries."""

    model: Any
    hook_points: list[HookPoint]
    dictionaries: dict[str, Dictionary]
    code: Code
    """Code of the family's positions, on the model's device"""
    passages: Sequence[Passage]
    skippable: Mapping[str, Sequence[nn.Module]] = field(default_factory=dict)
    """Hook point -> layers that can be skipped when the hook point's activations are known"""

    @property
    def device(self) -> torch.device:
        return next(iter(self.model.parameters())).device

    def earlier(self, name: str) -> list[HookPoint]:
        """The hook points before this one."""
        names = [hook_point.name for hook_point in self.hook_points]
        return self.hook_points[: names.index(name)]

    def hook_point(self, name: str) -> HookPoint:
        return next(hook_point for hook_point in self.hook_points if hook_point.name == name)

    def forward(self, batch: Batch) -> Any:
        """Run one forward pass, which triggers the hooks, and return the body's output."""
        return self.model(
            input_ids=batch.ids.to(self.device), attention_mask=batch.mask.to(self.device), use_cache=False
        )


def choose_tokens(
    passages: Sequence[Passage], fires: Tensor, valid: Tensor, hook_point: str, column: int, most: int, seed: int
) -> Target:
    """Up to `most` positions at which a feature fires, from documents in random order.

    fires, valid: bool [rows of the code], where the feature is active and where the source is valid. The choice is
    deterministic, so two checkpoints are examined at the same positions as far as possible.
    """
    chosen: list[Tensor] = [torch.zeros(0, dtype=torch.int64)] * len(passages)
    left = most
    later: list[tuple[int, Tensor]] = []
    for number in np.random.default_rng(seed).permutation(len(passages)).tolist():
        passage = passages[number]
        own = passage.tokens[(fires & valid)[passage.rows]]
        first, rest = own[:PER_DOCUMENT][:left], own[PER_DOCUMENT:]
        chosen[number] = first
        left -= len(first)
        if len(rest):
            later.append((number, rest))
        if not left:
            break
    for number, rest in later:
        more = rest[:left]
        chosen[number] = torch.cat([chosen[number], more])
        left -= len(more)
    return Target(hook_point, column, chosen)


def deal_folds(documents: Sequence[int], folds: int) -> dict[int, int]:
    """Fold of each document, by a fixed shuffle: the same for all checkpoints of a family."""
    order = np.random.default_rng(0).permutation(len(documents))
    return {int(documents[i]): int(index % folds) for index, i in enumerate(order)}


def batches(passages: Sequence[Passage], wanted: Sequence[int], batch_tokens: int) -> Iterator[Batch]:
    """Batches of up to `batch_tokens` tokens, padding included, longest passages first."""
    order = sorted(wanted, key=lambda i: (-len(passages[i].ids), i))
    while order:
        members = order[: max(1, batch_tokens // len(passages[order[0]].ids))]
        order = order[len(members) :]
        texts = [passages[i].ids for i in members]
        ids = pad_sequence(texts, batch_first=True)
        yield Batch(members, ids, pad_sequence([torch.ones_like(text) for text in texts], batch_first=True))


def first_of(output: Any) -> Tensor:
    """The activations in a module's output."""
    activations: Tensor = output[0] if isinstance(output, tuple) else output
    return activations


@contextmanager
def watching(hook_points: Sequence[HookPoint]) -> Iterator[dict[str, Tensor]]:
    """While open, every forward stores the modules' outputs (with gradient, without factor) in the yielded dict."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[name] = first_of(output)

        return hook

    handles = [hook_point.module.register_forward_hook(keep(hook_point.name)) for hook_point in hook_points]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def skipping(layers: Sequence[nn.Module]) -> Iterator[None]:
    """While open, these layers return their input. Used when a hook supplies their output."""
    for layer in layers:
        layer.forward = lambda x, *_positional, **_named: x
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@contextmanager
def replacing(module: nn.Module, make: Any) -> Iterator[None]:
    """While open, the module's output is replaced by `make(output)`."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        new = make(first_of(output))
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
