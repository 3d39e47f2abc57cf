"""The rule of signatures: one case for each answer, and what lies between them."""

from typing import Any

import pytest

from featurewatch.service.signatures.rule import Evidence, Interval, judge
from featurewatch.service.verdicts.policy import Policy

HIGH, LOW, WIDE = Interval(0.95, 0.9, 0.98), Interval(0.52, 0.45, 0.6), Interval(0.7, 0.5, 0.9)


def said(**changes: Any) -> str:
    evidence: dict[str, Any] = {
        "strength": Interval(1.0, 0.9, 1.1),
        "auroc": HIGH,
        "reselected": HIGH,
        "reselected_strength": 1.0,
        "reselected_before": 1.0,
        "baseline_auroc": 0.95,
    }
    return judge(Evidence(**evidence | changes), Policy())[0]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "present"),
        ({"strength": Interval(0.3, 0.2, 0.45)}, "suppressed"),
        ({"strength": Interval(3.0, 2.5, 3.5)}, "amplified"),
        ({"strength": Interval(0.02, -0.05, 0.08)}, "absent"),
        ({"strength": Interval(0.3, 0.2, 0.4), "auroc": LOW, "reselected": LOW}, "absent"),
        # Others carry it now, which wrote little of it before.
        ({"strength": Interval(0.05, 0.0, 0.09), "auroc": LOW, "reselected_before": 0.1}, "replaced"),
        # Others separate the classes too, as they always did: nothing took over.
        ({"strength": Interval(0.3, 0.2, 0.4), "auroc": LOW, "reselected_before": 0.9}, "suppressed"),
        # What others write is next to nothing.
        ({"strength": Interval(0.05, 0, 0.09), "reselected_strength": 0.2, "reselected_before": 0.0}, "absent"),
        ({"strength": Interval(0.6, 0.4, 0.8)}, "indeterminate"),
        ({"auroc": WIDE}, "indeterminate"),
        ({"strength": None}, "indeterminate"),
        ({"auroc": LOW}, "suppressed"),
    ],
)
def test_cases(changes: dict[str, Any], status: str) -> None:
    assert said(**changes) == status


def test_indeterminate_says_why() -> None:
    evidence = Evidence(Interval(0.6, 0.4, 0.8), HIGH, HIGH, 1.0, 1.0, 0.95)
    assert "more rows" in str(judge(evidence, Policy())[1])
    assert judge(evidence._replace(strength=Interval(1, 0.9, 1.1)), Policy())[1] is None
