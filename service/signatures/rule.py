"""The rule that says what became of a signature. Pure Python: the worker measures, this decides."""

from typing import Literal, NamedTuple

from featurewatch.service.verdicts.policy import Policy

Status = Literal["present", "suppressed", "amplified", "replaced", "absent", "indeterminate"]

HELD = 0.5
"""Share of what the baseline's AUROC has over chance that must be left of it."""


class Interval(NamedTuple):
    """A figure with its interval."""

    value: float
    low: float
    high: float


class Evidence(NamedTuple):
    """What the rule goes by."""

    strength: Interval | None
    """What the signature's features write of the difference, over what they wrote at the baseline; None: nothing that
    could be held against anything"""
    auroc: Interval
    """of the signature's own features"""
    reselected: Interval
    """of features chosen anew"""
    reselected_strength: float
    """What those write of the difference, over the signature's strength at the baseline"""
    reselected_before: float
    """What the same ones wrote at the baseline, over that"""
    baseline_auroc: float


def judge(e: Evidence, policy: Policy) -> tuple[Status, str | None]:
    """The status, and of `indeterminate` the reason."""
    if e.strength is None:
        return "indeterminate", "the signature's features do not write a difference at the baseline"
    least = 0.5 + HELD * (e.baseline_auroc - 0.5)
    weak, strong = e.strength.high < policy.suppressed_below, e.strength.low > policy.amplified_above
    inside = e.strength.low >= policy.suppressed_below and e.strength.high <= policy.amplified_above
    falls, others_fall = e.auroc.high < least, e.reselected.high < least
    enough = e.reselected_strength >= policy.successor_strength
    took_over = enough and e.reselected_before < policy.suppressed_below * e.reselected_strength
    cases: list[tuple[bool, Status]] = [
        ((weak or falls) and e.reselected.low >= least and took_over, "replaced"),
        (e.strength.high < policy.absent_below or (falls and others_fall), "absent"),
        (weak or falls, "suppressed"),
        (strong, "amplified"),
        (inside and e.auroc.low >= least, "present"),
    ]
    found = next((status for holds, status in cases if holds), None)
    if found is None:
        return "indeterminate", "the intervals leave more than one answer, and more rows narrow them"
    return found, None
