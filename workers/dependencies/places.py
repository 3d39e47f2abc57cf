"""What attributions are made from: texts with their code, places in a model, and what is written and read there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Place(Protocol):
    """A hook point of a model: the output of `module`, times `factor`."""

    @property
    def name(self) -> str: ...
    @property
    def module(self) -> nn.Module: ...
    @property
    def factor(self) -> float: ...


@dataclass(frozen=True)
class Dictionary:
    """What a family's features are at one source; normalised units are (x - mean) / scale."""

    mean: Tensor
    """[d]"""
    scale: float
    """rms / sqrt(d)"""
    decoder: Tensor
    """[m, d] in raw units of the stream"""
    bias: Tensor
    """[d] in raw units, beside the mean"""
    readout: Tensor
    """[d, m] of normalised activations"""
    readout_bias: Tensor
    """[m]"""

    @staticmethod
    def of(tensors: dict[str, Tensor]) -> "Dictionary":
        """From the tensors of a dictionary artifact, which are in normalised units."""
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
        """Pre-activation of a feature at raw activations: [n, d] -> [n]."""
        return (x - self.mean) @ (self.readout[:, column] / self.scale) + self.readout_bias[column]

    def constant(self, column: int) -> float:
        """What the read-out of a feature gives at an activation of 0."""
        weight = self.readout[:, column] / self.scale
        return float(self.readout_bias[column] - self.mean @ weight)


class Passage(NamedTuple):
    """One document, as the model reads it."""

    ids: Tensor
    """int64 [t]"""
    rows: Tensor
    """int64 [r] rows of the code that are positions of this document with a token of their own, ascending"""
    tokens: Tensor
    """int64 [r] index in `ids` of each"""
    fold: int
    """of the document, for the statistics"""


class Target(NamedTuple):
    """A feature, where it is read, and at which tokens of each passage (empty: not in this one)."""

    place: str
    column: int
    tokens: Sequence[Tensor]


class Batch(NamedTuple):
    """Passages beside each other, padded on the right."""

    members: list[int]
    """index of each passage"""
    ids: Tensor
    """int64 [b, t]"""
    mask: Tensor
    """int64 [b, t]"""


def batches(passages: Sequence[Passage], wanted: Sequence[int], batch_tokens: int) -> Iterator[Batch]:
    """The wanted passages by length, as many at a time as make `batch_tokens` with their padding."""
    order = sorted(wanted, key=lambda i: (-len(passages[i].ids), i))
    while order:
        longest = len(passages[order[0]].ids)
        members = order[: max(1, batch_tokens // longest)]
        order = order[len(members) :]
        ids = torch.zeros(len(members), longest, dtype=torch.int64)
        mask = torch.zeros(len(members), longest, dtype=torch.int64)
        for row, i in enumerate(members):
            ids[row, : len(passages[i].ids)] = passages[i].ids
            mask[row, : len(passages[i].ids)] = 1
        yield Batch(members, ids, mask)


def first_of(output: Any) -> Tensor:
    """The activations in what a module gives back."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


@contextmanager
def watching(places: Sequence[Place]) -> Iterator[dict[str, Tensor]]:
    """While open, every forward fills the yielded dictionary with the modules' outputs (in the graph, no factor)."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[name] = first_of(output)

        return hook

    handles = [place.module.register_forward_hook(keep(place.name)) for place in places]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def skipping(layers: Sequence[nn.Module]) -> Iterator[None]:
    """While open, these layers pass their input on. For forwards in which what they write is put in by a hook."""
    for layer in layers:
        layer.forward = lambda x, *_positional, **_named: x
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@contextmanager
def replacing(module: nn.Module, make: Any) -> Iterator[None]:
    """While open, the module's output is `make(output)`."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        made = make(first_of(output))
        return (made, *output[1:]) if isinstance(output, tuple) else made

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
