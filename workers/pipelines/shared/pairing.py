"""Which hook point of a checkpoint is held against which of its parent's, where they are not as many."""

from dataclasses import replace

import numpy as np
import torch

from featurewatch.workers.errors import RunError
from featurewatch.workers.pipelines.shared.context import OnboardingContext, ParentCheckpoint
from featurewatch.workers.pipelines.shared.sources import BLOCK, Activations
from featurewatch.workers.verdicts.similarity import one_to_one, procrustes_similarity, same_kind

SAMPLE = 16_384
"""Positions that sources are compared at."""


def pair(
    context: OnboardingContext, activations: Activations, parent: Activations
) -> tuple[OnboardingContext, Activations, Activations]:
    """The work with its hook points in pairs, and both checkpoints' activations in their order.

    The parent keeps those that are paired; the checkpoint's others follow behind its paired ones. As many as the
    parent's are pairs already, by name or by place. Else the parent's of the same names are taken, where it has them
    all and as wide; else the pairs of one kind that are most alike. RunError `nothing-to-pair`.
    """
    assert context.parent is not None
    mine, theirs = activations.hook_points, parent.hook_points
    if len(mine) == len(theirs):
        return context, activations, parent
    there = dict(zip(theirs, parent.widths, strict=True))
    if all(there.get(hook) == width for hook, width in zip(mine, activations.widths, strict=True)):
        pairs = {hook: hook for hook in mine}
    else:
        pairs = _most_alike(context.parent, activations, parent)
    hooks = [*pairs, *(hook for hook in mine if hook not in pairs)]
    narrowed = replace(context, hook_points=hooks, parent=replace(context.parent, hook_points=list(pairs.values())))
    return narrowed, activations.at(hooks), parent.at(list(pairs.values()))


def _most_alike(parent: ParentCheckpoint, now: Activations, before: Activations) -> dict[str, str]:
    """Hook point -> the parent's, in the order of the parent's."""
    allowed = same_kind(now.hook_points, before.hook_points)
    if not allowed.any():
        raise RunError(
            "nothing-to-pair",
            f"{', '.join(now.hook_points)}: no hook point of the kinds that {parent.name} was read at "
            f"({', '.join(before.hook_points)}); name one, or as many as it has to pair them by their place",
        )
    rows = (now.valid & before.valid).nonzero().squeeze(1)
    if not len(rows):
        raise RunError("no-common-positions", f"no token ends where one of {parent.name} does; use a longer corpus")
    picked = rows[torch.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).long()]
    x, y = (torch.cat([read(part) for part in picked.split(BLOCK)]) for read in (now, before))
    parts_x, parts_y = (x - x.mean(0)).split(now.widths, 1), (y - y.mean(0)).split(before.widths, 1)
    similarity = np.array([[procrustes_similarity(a, b) for b in parts_y] for a in parts_x])
    pairs = sorted(one_to_one(similarity, allowed), key=lambda pair: pair[1])
    return {now.hook_points[a]: before.hook_points[b] for a, b in pairs}
