"""Choosing the positions at which a target is examined, spread over documents."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from featurewatch.workers.dependencies.reading import Passage, Target

PER_DOCUMENT = 16
"""Positions taken from a document before those of other documents."""


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
