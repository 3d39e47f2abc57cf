"""Activations of a checkpoint as the crosscoder reads them: hook points side by side, normalised."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from featurewatch.workers.activations.store import ActivationSet, open_activations
from featurewatch.workers.crosscoder.model import Moments, Normaliser
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared.context import EarlierCheckpoint, OnboardingContext, device_of

BLOCK = 16_384
CACHED_BYTES = 512 * 2**20
"""Activations up to this size are normalised once and cached in memory; larger ones are read again each time."""


class Activations:
    """Normalised activations of one checkpoint at some hook points.

    Calling it with rows (sorted int64 [b]) returns [b, D] float32 on the device; D is the sum of `widths`.
    """

    def __init__(self, opened: ActivationSet, hook_points: list[str], device: torch.device) -> None:
        self.opened, self.hook_points, self.device = opened, hook_points, device
        self.widths = [opened.hook_points[hook] for hook in hook_points]
        self.valid = torch.from_numpy(opened.valid)
        self.document = torch.from_numpy(opened.document)
        self.normaliser: Normaliser | None = None
        self.cached: Tensor | None = None

    def raw(self, rows: Tensor) -> Tensor:
        """Activations [b, D] as stored, hook points side by side."""
        picked = rows.cpu().numpy()
        parts = [self.opened.read(hook, picked).to(self.device) for hook in self.hook_points]
        return parts[0] if len(parts) == 1 else torch.cat([part.float() for part in parts], 1)

    def normalised(self) -> Normaliser:
        """The normaliser that was set, or one measured in a pass over the valid positions."""
        if self.normaliser is not None:
            return self.normaliser
        moments = Moments(self.widths, self.device)
        for block in self.valid.nonzero().squeeze(1).split(BLOCK):
            moments.add(self.raw(block))
        return self.normalise_by(moments.normaliser())

    def __call__(self, rows: Tensor) -> Tensor:
        normaliser = self.normalised()
        if self.cached is not None:
            return self.cached[rows]
        return normaliser(self.raw(rows))

    def normalise_by(self, normaliser: Normaliser) -> Normaliser:
        """Set the normaliser. Small activations are normalised at once and cached."""
        self.normaliser = Normaliser(normaliser.mean.to(self.device), normaliser.scale.to(self.device))
        every = torch.arange(self.opened.n_positions)
        if 4 * len(every) * sum(self.widths) <= CACHED_BYTES:
            self.cached = torch.cat([self.normaliser(self.raw(block)) for block in every.split(BLOCK)])
        return self.normaliser

    def at(self, hook_points: list[str]) -> "Activations":
        """These activations at some of their hook points, in the given order."""
        if hook_points == self.hook_points:
            return self
        normaliser, part = self.normalised(), Activations(self.opened, hook_points, self.device)
        index = torch.arange(sum(self.widths), device=self.device).split(self.widths)
        columns = torch.cat([index[self.hook_points.index(hook)] for hook in hook_points])
        part.normalise_by(Normaliser(normaliser.mean[columns], normaliser.scale[columns]))
        return part

    def statistics(self) -> list[tuple[Tensor, float]]:
        """(mean [d], rms) of each hook point."""
        normaliser = self.normalised()
        means, scales = normaliser.mean.split(self.widths), normaliser.scale.split(self.widths)
        return [(m, d**0.5 / float(s[0])) for m, s, d in zip(means, scales, self.widths, strict=True)]


def open_sources(
    execution: Execution, context: OnboardingContext, folder: Path, hook_points: list[str] | None = None
) -> Activations:
    """Stored activations, checked against the family. hook_points: default: those of the context."""
    hooks = hook_points or context.hook_points
    count = context.positions["count"] if context.positions else None
    opened = open_activations(folder, expected_positions=count, hook_points=hooks)
    return Activations(opened, hooks, device_of(execution.settings))


def normaliser_of(execution: Execution, checkpoint: EarlierCheckpoint, device: torch.device) -> Normaliser:
    """The normaliser of an earlier checkpoint, from its dictionaries."""
    tensors = [load_file(execution.artifacts.path(checkpoint.dictionaries[hook])) for hook in checkpoint.hook_points]
    scales = [torch.full_like(t["mean"], len(t["mean"]) ** 0.5 / float(t["rms"])) for t in tensors]
    return Normaliser(torch.cat([t["mean"] for t in tensors]).to(device), torch.cat(scales).to(device))
