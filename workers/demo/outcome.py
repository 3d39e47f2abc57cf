"""What the demo found, set beside what it planted; and the checks that decide its exit code."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from featurewatch.workers.demo.receiver import checkpoint_of
from featurewatch.workers.demo.selection import Edit

RATIO_TOLERANCE = 0.15
MOST_WRONG_VERDICTS = 1
UNTOUCHED_SHARE = 0.999
"""Of the features of a release with the same weights: present, or too little seen to say."""
FALSE_CALL_SHARE = 0.001
"""Of the features that nobody touched: called suppressed or absent."""

QUIET = frozenset({"present", "indeterminate"})
LOST = frozenset({"suppressed", "absent"})


@dataclass(frozen=True)
class Planted:
    """One edit and the answer to it."""

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
    """One promise of the demo: what came out, and whether that is good enough."""

    name: str
    value: str
    passed: bool


@dataclass
class Outcome:
    """Everything that the demo has to say; `--json` prints it."""

    planted: list[Planted]
    counts: dict[str, dict[str, int]]
    """Checkpoint -> status -> features."""
    false_calls: list[dict[str, Any]]
    """Untouched features that the tampered release is said to have lost."""
    alerts: dict[str, list[str]]
    """Checkpoint -> summaries of its alerts."""
    webhooks: list[dict[str, Any]]
    """Events received with a good signature: type and checkpoint."""
    checks: list[Check]
    seconds: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return all(check.passed for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return self.about | {
            "planted": [asdict(each) for each in self.planted],
            "counts": self.counts,
            "false_calls": self.false_calls,
            "alerts": self.alerts,
            "webhooks": self.webhooks,
            "seconds": self.seconds,
            "checks": [asdict(check) for check in self.checks],
            "passed": self.passed,
        }


def assess(
    edits: Sequence[Edit],
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    alerts: Mapping[str, Sequence[str]],
    events: Sequence[Mapping[str, Any]],
    missing_events: Sequence[tuple[str, str]],
    *,
    same: str,
    tampered: str,
) -> Outcome:
    """Compare planted edits with verdicts.

    rows: checkpoint -> rows of `/features`; `same` and `tampered` are the names of the release with the same weights
    and of the one with the edits; missing_events: (type, checkpoint) of webhooks that did not come.
    """
    by_id = {row["id"]: row for row in rows[tampered]}
    planted = [_planted(edit, by_id[f"F{edit.feature}"]) for edit in edits]
    touched = {each.feature for each in planted}
    others = [row for row in rows[tampered] if row["id"] not in touched]
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
            f"{tampered}: other features called suppressed or absent",
            f"{len(false_calls)} of {len(others):,} (at most {FALSE_CALL_SHARE:.1%})",
            len(false_calls) <= FALSE_CALL_SHARE * len(others),
        ),
        Check(
            "webhooks received, signatures good",
            f"{len(events)} received" + (f", missing: {sorted(missing_events)}" if missing_events else ""),
            not missing_events,
        ),
    ]
    received = [{"type": event["type"], "checkpoint": checkpoint_of(event)} for event in events]
    return Outcome(
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
            f"projection ratio within {RATIO_TOLERANCE} of what is left",
            f"{close} of {len(planted)} (all)",
            close == len(planted),
        ),
        Check(
            "verdict right",
            f"{right} of {len(planted)} (at least {len(planted) - MOST_WRONG_VERDICTS})",
            right >= len(planted) - MOST_WRONG_VERDICTS,
        ),
    ]
