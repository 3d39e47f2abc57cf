"""The demo's checks fail when the service is wrong, each on its own."""

import io
import json

import pytest
from rich.console import Console

from featurewatch.workers.demo.outcome import assess
from featurewatch.workers.demo.selection import ALPHAS, Edit
from featurewatch.workers.demo.show import Show

EDITS = [Edit(10 + i, alpha) for i, alpha in enumerate(ALPHAS)]
EVENTS = [{"type": "checkpoint.judged", "data": {"checkpoint": name}} for name in ("v1", "v2", "v3")]


def row(number, status="present", ratio=1.0):
    return {
        "id": f"F{number}", "status": status, "projection_ratio": ratio, "top_tokens": [" the", "\n"], "firings": 300,
        "projection_ratio_ci": None if ratio is None else [ratio - 0.05, ratio + 0.05],
    }  # fmt: skip


@pytest.fixture
def rows():
    same = {number: row(number) for number in range(2048)}
    same[3]["status"] = "indeterminate"
    edited = {number: row(number) for number in range(2050)}
    for edit in EDITS:
        status = sorted(edit.right_statuses)[-1]
        edited[edit.feature] = row(edit.feature, status, edit.expected_ratio + 0.07)
    return {"v1": [row(number) for number in range(2048)], "v2": same, "v3": edited}


def judge(rows, *, alerts=(), missing=()):
    lists = {name: list(part.values()) if isinstance(part, dict) else part for name, part in rows.items()}
    raised = {"v1": [], "v2": list(alerts), "v3": ["3 features are suppressed"]}
    return assess(EDITS, lists, raised, EVENTS, missing, same="v2", edited="v3")


def failed(outcome):
    return [check.name for check in outcome.checks if not check.passed]


def test_a_service_that_is_right_passes(rows):
    rows["v3"][EDITS[2].feature]["status"] = "present"  # 50%: on the threshold
    outcome = judge(rows)
    assert outcome.passed
    assert len(outcome.checks) == 6
    assert [each.right for each in outcome.planted] == [True] * 8
    assert outcome.counts["v2"] == {"present": 2047, "indeterminate": 1}
    json.dumps(outcome.as_json())


def test_one_wrong_verdict_is_forgiven_and_two_are_not(rows):
    rows["v3"][EDITS[7].feature]["status"] = "suppressed"
    assert failed(judge(rows)) == []
    rows["v3"][EDITS[6].feature]["status"] = "replaced"
    assert failed(judge(rows)) == ["verdict correct"]


@pytest.mark.parametrize("ratio", [0.2, None])
def test_each_ratio_must_be_close(rows, ratio):
    rows["v3"][EDITS[7].feature] |= {"projection_ratio": ratio, "projection_ratio_ci": None}
    assert failed(judge(rows)) == ["projection ratio within 0.15 of the expected one"]


def test_false_calls_in_the_tampered_release(rows):
    rows["v3"][500]["status"], rows["v3"][501]["status"] = "suppressed", "absent"
    assert judge(rows).passed  # 2 of 2,042 are no more than 0.1%
    rows["v3"][502]["status"] = "suppressed"
    outcome = judge(rows)
    assert failed(outcome) == ["v3: other features called suppressed or absent"]
    assert [call["feature"] for call in outcome.false_calls] == ["F500", "F501", "F502"]


def test_the_same_weights_must_stay_quiet(rows):
    assert failed(judge(rows, alerts=["1 feature is suppressed"])) == ["v2, the same weights: alerts"]
    for number in (1, 2, 5):
        rows["v2"][number]["status"] = "amplified"
    assert failed(judge(rows)) == ["v2: features present or indeterminate"]


def test_webhooks_must_come(rows):
    outcome = judge(rows, missing=[("alert.raised", "v3")])
    assert failed(outcome) == ["webhooks received, signatures valid"]


def test_what_is_shown_says_what_was_planted_and_what_failed(rows):
    rows["v3"][EDITS[7].feature] |= {"projection_ratio": None, "projection_ratio_ci": None}
    out = io.StringIO()
    show = Show(Console(file=out, width=160))
    show.outcome(judge(rows), {"v1": "the model", "v2": "the same", "v3": "tampered"})
    text = out.getvalue()
    assert "F17" in text
    assert "count as correct" in text
    assert "NO" in text
    assert "2,047 present, 1 indeterminate" in text
    assert "webhook received, signature valid: checkpoint.judged (v3)" in text


def test_the_tables_fit_a_terminal_of_80_columns(rows):
    tokens = [" and", " remainder", " result", " product", " clause"]
    for edit in EDITS:
        rows["v3"][edit.feature] |= {"id": f"F{edit.feature}", "top_tokens": tokens}
    rows["v3"][EDITS[2].feature]["status"] = "indeterminate"
    out = io.StringIO()
    show = Show(Console(file=out, width=80, force_terminal=True, color_system=None))
    show.outcome(judge(rows), {"v1": "the model", "v2": "the same weights in bfloat16", "v3": "tampered with"})
    text = out.getvalue()
    tables = [line for line in text.splitlines() if not line.startswith(("Too narrow", "At 50%", "webhook"))]
    assert max(map(len, tables)) <= 80
    assert text.count("…") == len(EDITS), "only tokens are cut, which are examples"
    for heading in ("feature", "left", "measured", "95% interval", "verdict", "right", "top tokens"):
        assert heading in text
    assert "Too narrow for removed: " in text, "which is 1 less what is left"
    assert [line.split()[:6] for line in tables if line.startswith("F12")] == [
        ["F12", "0.50", "0.57", "0.52", "..", "0.62"]
    ]


def test_progress_is_plain_lines_without_a_terminal():
    out = io.StringIO()
    show = Show(Console(file=out, width=160))
    run = {"state": "running", "stage": "fit", "progress": 0.25, "seconds": {}}
    run["detail"] = {"step": 300, "steps": 1200, "positions_per_second": 1702.4, "loss": 0.3}
    with show.following("v1") as follower:
        follower(run)
        follower(run | {"progress": 0.26})
        follower(run | {"stage": "judge", "progress": 0.0, "detail": {}})
        follower(run | {"stage": "judge", "state": "succeeded", "seconds": {"fit": 90.04}})
    assert out.getvalue().splitlines() == [
        "v1: fit 25% step 300 of 1,200, 1,702 positions/s",
        "v1: judge 0%",
        "v1: succeeded (fit 90.0 s)",
    ]
