"""Compares the verdicts with the planted edits, and makes the checks that decide the exit code."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from featurewatch.workers.demo.receiver import checkpoint_of
from featurewatch.workers.demo.selection import Edit

RATIO_TOLERANCE = 0.15
MOST_WRONG_VERDICTS = 1
UNTOUCHED_SHARE = 0.999
"""Share of features that must be present or indeterminate in a release with the same weights."""
FALSE_CALL_SHARE = 0.001
"""Share of unedited features that may be called suppressed or absent."""

QUIET = frozenset({"present", "indeterminate"})
LOST = frozenset({"suppressed", "absent"})


@dataclass(frozen=True)
class Planted:
    """An edit, and the verdict on it."""

    feature: str
    alpha: float
    expected_ratio: float
    projection_ratio: float | None
    projection_ratio_ci: list[float] | None
    status: str
    right: bool
    close: bool
    top_tokens: list[str]
    firings: int


@dataclass(frozen=True)
class Check:
    """One check of the demo: the measured value, and whether it passes."""

    name: str
    value: str
    passed: bool


@dataclass
class DemoOutcome:
    """The result of the demo, as `--json` prints it."""

    planted: list[Planted]
    counts: dict[str, dict[str, int]]
    """checkpoint -> status -> number of features"""
    false_calls: list[dict[str, Any]]
    """Unedited features that are called suppressed or absent in the edited release"""
    alerts: dict[str, list[str]]
    """checkpoint -> summaries of its alerts"""
    webhooks: list[dict[str, Any]]
    """Events received with a valid signature: type and checkpoint"""
    checks: list[Check]
    seconds: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        outcome = asdict(self)
        return outcome.pop("about") | outcome | {"passed": self.passed}


def assess(
    edits: Sequence[Edit],
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    alerts: Mapping[str, Sequence[str]],
    events: Sequence[Mapping[str, Any]],
    missing_events: Sequence[tuple[str, str]],
    *,
    same: str,
    edited: str,
) -> DemoOutcome:
    """Compare planted edits with verdicts.

    rows: checkpoint -> rows of `/features`. same, edited: names of the releases with the same weights, and with the
    edits. missing_events: (type, checkpoint) of webhooks that did not arrive.
    """
    by_id = {row["id"]: row for row in rows[edited]}
    planted = [_planted(edit, by_id[f"F{edit.feature}"]) for edit in edits]
    planted_features = {each.feature for each in planted}
    others = [row for row in rows[edited] if row["id"] not in planted_features]
    false_calls = [
        {"feature": row["id"], "status": row["status"], "projection_ratio": row["projection_ratio"]}
        for row in others
        if row["status"] in LOST
    ]
    counts = {name: dict(Counter(row["status"] for row in part)) for name, part in rows.items()}
    checks = [
        *_same_checks(rows[same], alerts[same], same),
        *_planted_checks(planted),
        Check(
            f"{edited}: other features called suppressed or absent",
            f"{len(false_calls)} of {len(others):,} (at most {FALSE_CALL_SHARE:.1%})",
            len(false_calls) <= FALSE_CALL_SHARE * len(others),
        ),
        Check(
            "webhooks received, signatures valid",
            f"{len(events)} received" + (f", missing: {sorted(missing_events)}" if missing_events else ""),
            not missing_events,
        ),
    ]
    received = [{"type": event["type"], "checkpoint": checkpoint_of(event)} for event in events]
    return DemoOutcome(
        planted=planted,
        counts=counts,
        false_calls=false_calls,
        alerts={name: list(summaries) for name, summaries in alerts.items()},
        webhooks=received,
        checks=checks,
    )


def _planted(edit: Edit, row: Mapping[str, Any]) -> Planted:
    ratio = row["projection_ratio"]
    return Planted(
        feature=row["id"],
        alpha=edit.alpha,
        expected_ratio=edit.expected_ratio,
        projection_ratio=ratio,
        projection_ratio_ci=row["projection_ratio_ci"],
        status=row["status"],
        right=row["status"] in edit.right_statuses,
        close=ratio is not None and abs(ratio - edit.expected_ratio) <= RATIO_TOLERANCE,
        top_tokens=list(row["top_tokens"]),
        firings=row["firings"],
    )


def _same_checks(rows: Sequence[Mapping[str, Any]], alerts: Sequence[str], name: str) -> list[Check]:
    quiet = sum(row["status"] in QUIET for row in rows)
    return [
        Check(f"{name}, the same weights: alerts", f"{len(alerts)} (none)", not alerts),
        Check(
            f"{name}: features present or indeterminate",
            f"{quiet:,} of {len(rows):,} (at least {UNTOUCHED_SHARE:.1%})",
            quiet >= UNTOUCHED_SHARE * len(rows) > 0,
        ),
    ]


def _planted_checks(planted: Sequence[Planted]) -> list[Check]:
    close, right = sum(each.close for each in planted), sum(each.right for each in planted)
    return [
        Check(
            f"projection ratio within {RATIO_TOLERANCE} of the expected one",
            f"{close} of {len(planted)} (all)",
            close == len(planted),
        ),
        Check(
            "verdict correct",
            f"{right} of {len(planted)} (at least {len(planted) - MOST_WRONG_VERDICTS})",
            right >= len(planted) - MOST_WRONG_VERDICTS,
        ),
    ]
