"""The correct verdicts on the features of a planted lineage."""

from dataclasses import dataclass

from benchmarks.planted_shape import (
    ABSENT,
    AMPLIFIED,
    AMPLIFIED_ABOVE,
    EMERGED,
    PRESENT,
    REPLACED,
    STRENGTHENED,
    STRENGTHENED_ABOVE,
    SUPPRESSED,
    SUPPRESSED_BELOW,
    UNBORN,
    WEAKENED,
    WEAKENED_BELOW,
)

PLACELESS = (UNBORN, ABSENT, REPLACED, EMERGED, SUPPRESSED)
"""Statuses of features that have no places to compare."""


@dataclass(frozen=True)
class Truth:
    """The correct status and places of each planted feature in one checkpoint, [n_planted] each.

    An event counts where it happens. Against the parent a feature whose strength or direction changed earlier, and
    stays so, is `present`; one that is gone (removed or replaced) and was gone before stays `absent`: there is nothing
    to be present. `unborn` features must not be reported at all. In the same way a feature that keeps its new places
    has the `same` places as its parent.
    """

    against_parent: list[str]
    against_first: list[str]
    places_against_parent: list[str | None]
    """None where either checkpoint does not write the feature, or writes it only weakly (suppressed)."""
    places_against_first: list[str | None]
    gained_share: list[float | None]
    """Of the planted magnitudes, against the parent; None where the parent does not write the feature."""
    lost_share: list[float | None]
    firing_rate_ratio: list[float | None]


def status_of(before: float, now: float, *, unborn: bool = False) -> str:
    """The correct status of a feature from its levels at the baseline and now."""
    if unborn:
        return UNBORN
    if now == 0:
        return ABSENT
    if before == 0:
        return EMERGED
    if now < SUPPRESSED_BELOW * before:
        return SUPPRESSED
    if now < WEAKENED_BELOW * before:
        return WEAKENED
    if now <= STRENGTHENED_ABOVE * before:
        return PRESENT
    return AMPLIFIED if now > AMPLIFIED_ABOVE * before else STRENGTHENED
