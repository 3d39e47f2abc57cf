"""Which positions of which documents a target is looked at: as many as are asked for, spread over documents."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from featurewatch.workers.dependencies.places import Passage, Target

PER_DOCUMENT = 16
"""Positions of one document that count before other documents do."""


def choose_tokens(
    passages: Sequence[Passage], fires: Tensor, valid: Tensor, place: str, column: int, most: int, seed: int
) -> Target:
    """Up to `most` positions at which a feature fires, of documents in an order that the seed deals.

    fires, valid: bool [rows of the code], where the feature has an activation and where the source can be read. The
    same arguments give the same positions, so two checkpoints are looked at in the same places where both can be.
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
    return Target(place, column, chosen)


def deal_folds(documents: Sequence[int], folds: int) -> dict[int, int]:
    """Fold of each document, a fixed shuffle of all documents of the family: equal for all its checkpoints."""
    order = np.random.default_rng(0).permutation(len(documents))
    return {int(documents[i]): int(place % folds) for place, i in enumerate(order)}
