"""Which hook point of a checkpoint is compared with which of its parent's."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from featurewatch.workers.errors import RunError
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared.basis import References, load_references
from featurewatch.workers.pipelines.shared.context import OnboardingContext, ParentCheckpoint
from featurewatch.workers.pipelines.shared.sources import BLOCK, Activations
from featurewatch.workers.verdicts.similarity import one_to_one, procrustes_similarity, same_kind

SAMPLE = 16_384
"""Positions on which hook points are compared."""


@dataclass
class ParentPair:
    """A checkpoint beside its parent, hook point by hook point. A first checkpoint has no parent."""

    context: OnboardingContext
    activations: Activations
    """Paired hook points first, in the order of the parent's; unpaired ones behind them"""
    parent: Activations | None = None
    """The parent's paired hook points"""
    references: References | None = None
    gone: list[int] = field(default_factory=list)
    """Numbers of the features that are gone at the parent"""
    parent_readability: np.ndarray | None = None
    """[m] set only where one fit has just covered both checkpoints: the parent's verdicts are not in the database"""

    @cached_property
    def compared(self) -> Activations:
        """The checkpoint's activations at its paired hook points."""
        if self.parent is None:
            return self.activations
        return self.activations.at(self.activations.hook_points[: len(self.parent.hook_points)])


def pair_with_parent(
    execution: Execution,
    context: OnboardingContext,
    activations: Activations,
    parent: Activations,
    gone: list[int],
    parent_readability: np.ndarray | None = None,
) -> ParentPair:
    """Pair the hook points of a checkpoint with its parent's, and load the parent's references.

    Equally many hook points are paired already, by name or by position. Otherwise the parent's hook points of the same
    names are used, if it has them all with the same widths, else the most similar ones of the same kind. RunError
    `nothing-to-pair`.
    """
    assert context.parent is not None
    own, theirs = activations.hook_points, parent.hook_points
    if len(own) != len(theirs):
        parent_widths = dict(zip(theirs, parent.widths, strict=True))
        if all(parent_widths.get(hook) == width for hook, width in zip(own, activations.widths, strict=True)):
            pairs = {hook: hook for hook in own}
        else:
            pairs = _most_alike(context.parent, activations, parent)
        hooks = [*pairs, *(hook for hook in own if hook not in pairs)]
        paired_parent = replace(context.parent, hook_points=list(pairs.values()))
        context = replace(context, hook_points=hooks, parent=paired_parent)
        activations, parent = activations.at(hooks), parent.at(paired_parent.hook_points)
    references = load_references(execution, context, gone)
    return ParentPair(context, activations, parent, references, gone, parent_readability)


def _most_alike(parent: ParentCheckpoint, now: Activations, before: Activations) -> dict[str, str]:
    """Hook point -> the parent's, in the order of the parent's."""
    allowed = same_kind(now.hook_points, before.hook_points)
    if not allowed.any():
        raise RunError(
            "nothing-to-pair",
            f"{parent.name} has no hook point of the same kind as {', '.join(now.hook_points)} (it has "
            f"{', '.join(before.hook_points)}). Name hook points of the same kind, or the same number to pair them in "
            "order",
        )
    rows = (now.valid & before.valid).nonzero().squeeze(1)
    if not len(rows):
        raise RunError(
            "no-common-positions",
            f"this checkpoint and {parent.name} share no token boundaries on the probe corpus; use a longer corpus",
        )
    picked = rows[torch.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).long()]
    x, y = (torch.cat([read(part) for part in picked.split(BLOCK)]) for read in (now, before))
    parts_x, parts_y = (x - x.mean(0)).split(now.widths, 1), (y - y.mean(0)).split(before.widths, 1)
    similarity = np.array([[procrustes_similarity(a, b) for b in parts_y] for a in parts_x])
    pairs = sorted(one_to_one(similarity, allowed), key=lambda pair: pair[1])
    return {now.hook_points[a]: before.hook_points[b] for a, b in pairs}
