"""Chooses the features that the demo edits: by seed, before anyone looks at what they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ALPHAS = (0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0)


# Features may be chosen if the verdict on them can be checked.
LOWEST_RATE, HIGHEST_RATE = 0.005, 0.1
"""Share of positions. Rarer features fire too rarely for a narrow interval on a small corpus."""
LOWEST_READABILITY = 0.5
HIGHEST_ENERGY_SHARE = 0.0025
"""Of the stream's mean square, along one direction. A few directions carry most of it (and of the mean, which every
normalisation layer feels): a model without one of those is broken, not edited."""
HIGHEST_COSINE = 0.3
"""Between two chosen directions: beyond it, one edit is half the other."""
HIGHEST_TWIN_COSINE = 0.6
"""Between a chosen direction and any other feature's: a twin would be suppressed with it, and rightly."""


class TooFewFeaturesError(ValueError):
    """Fewer features fit the rules than there are edits."""


@dataclass(frozen=True)
class Edit:
    """A planted edit: the share `alpha` of the direction of feature number `feature` is removed."""

    feature: int
    alpha: float

    @property
    def expected_ratio(self) -> float:
        """The projection ratio that the service should measure."""
        return 1 - self.alpha

    @property
    def right_statuses(self) -> frozenset[str]:
        """Statuses that are correct under the default policy (suppressed below 0.5, absent below 0.1).

        At half strength the true value is the threshold itself, so its interval may fall on either side or across it.
        """
        if self.expected_ratio == 0.5:
            return frozenset({"present", "suppressed", "indeterminate"})
        if self.expected_ratio > 0.5:
            return frozenset({"present"})
        return frozenset({"absent"} if self.expected_ratio == 0 else {"suppressed"})


def choose(
    decoder: Tensor,
    firing_rate: Sequence[float] | np.ndarray,
    readability: Sequence[float] | np.ndarray,
    energy_share: Sequence[float] | np.ndarray,
    *,
    seed: int,
    alphas: Sequence[float] = ALPHAS,
) -> list[Edit]:
    """Draw one feature per alpha, by seed, among those that fit the rules.

    decoder: [m, d] rows of the fitted dictionary; firing_rate, readability and energy_share
    (of the stream, along the feature's unit direction): [m].
    Raises TooFewFeaturesError.
    """
    rows = decoder.double()
    norms = rows.norm(dim=1, keepdim=True)
    cosines = (rows / norms.clamp_min(1e-12)) @ (rows / norms.clamp_min(1e-12)).T
    cosines.fill_diagonal_(0)
    rate, readable = np.asarray(firing_rate, dtype=float), np.asarray(readability, dtype=float)
    energy = np.asarray(energy_share, dtype=float)
    alive = torch.from_numpy(rate > 0)
    twin = (cosines.abs() * alive[None, :]).amax(1).numpy()
    fits = (
        (rate >= LOWEST_RATE)
        & (rate <= HIGHEST_RATE)
        & (readable >= LOWEST_READABILITY)
        & (energy <= HIGHEST_ENERGY_SHARE)
        & (twin <= HIGHEST_TWIN_COSINE)
        & (norms[:, 0] > 0).numpy()
    )
    candidates = np.flatnonzero(fits)
    chosen: list[int] = []
    for feature in np.random.default_rng(seed).permutation(candidates):
        if len(chosen) == len(alphas):
            break
        if not chosen or float(cosines[feature, chosen].abs().max()) < HIGHEST_COSINE:
            chosen.append(int(feature))
    if len(chosen) < len(alphas):
        raise TooFewFeaturesError(
            f"only {len(chosen)} of {len(alphas)} features could be chosen: {len(candidates)} of {len(rate)} fire at "
            f"{LOWEST_RATE:.1%} to {HIGHEST_RATE:.0%} of the positions, are readable, small, and distinct"
        )
    return [Edit(feature, float(alpha)) for feature, alpha in zip(chosen, alphas, strict=True)]
