"""The rule that decides a signature's status from a worker's measurements. Pure Python."""

from typing import Literal, NamedTuple

from featurewatch.service.verdicts.policy import Policy

Status = Literal["present", "suppressed", "amplified", "replaced", "absent", "indeterminate"]

RETAINED = 0.5
"""Share of the baseline's AUROC above chance that must remain."""


class Interval(NamedTuple):
    """A figure with its confidence interval."""

    value: float
    low: float
    high: float


class Evidence(NamedTuple):
    """The measurements that the rule uses."""

    strength: Interval | None
    """How much of the difference the signature's features write, relative to the baseline. None if they write no
    difference at the baseline."""
    auroc: Interval
    """AUROC of the signature's own features."""
    reselected: Interval
    """AUROC of features chosen again in this checkpoint."""
    reselected_strength: float
    """How much of the difference the reselected features write, relative to the signature's strength at the
    baseline."""
    reselected_before: float
    """The same for the reselected features at the baseline."""
    baseline_auroc: float


def judge(e: Evidence, policy: Policy) -> tuple[Status, str | None]:
    """The status, and the reason if it is `indeterminate`."""
    if e.strength is None:
        return "indeterminate", "the signature's features do not write a difference at the baseline"
    least = 0.5 + RETAINED * (e.baseline_auroc - 0.5)
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
    status = next((status for holds, status in cases if holds), None)
    if status is None:
        return "indeterminate", "the intervals are too wide to decide; more rows would narrow them"
    return status, None
