"""Events as a chat shows them."""

import pytest

from featurewatch.service.webhooks.describe import escaped, text

ALERT = {"family": "smol", "summary": "v2: F0 suppressed", "rule_name": "deception"}
PAUSE = {"family": None, "summary": "webhook whk_1 (example.com) is paused", "rule_name": None}
JUDGED = {
    "family": "smol",
    "checkpoint": "v2",
    "parent": "v1",
    "statuses": {"present": 2046, "absent": 3, "replaced": 1, "suppressed": 0, "indeterminate": 2},
    "alerts": 1,
}
FAILED = {
    "family": "smol",
    "checkpoint": "v3",
    "kind": "onboard",
    "error": {"code": "worker-lost", "title": "The worker fell silent", "detail": "Worker w\ndid not\x1b[31m renew."},
}


@pytest.mark.parametrize(
    ("type_", "data", "said"),
    [
        (
            "checkpoint.judged",
            JUDGED,
            "smol: v2 was judged against v1: 3 absent, 1 replaced, 2,046 present, 2 indeterminate; alerts: 1",
        ),
        (
            "checkpoint.judged",
            JUDGED | {"parent": None, "statuses": {"present": 5}, "alerts": 0},
            "smol: v2 was judged: 5 present",
        ),
        (
            "checkpoint.judged",
            JUDGED | {"statuses": {"present": 5}, "places": {"same": 3, "broadened": 1_200, "displaced": 1}},
            "smol: v2 was judged against v1: 5 present; places: 1 displaced, 1,200 broadened; alerts: 1",
        ),
        ("alert.raised", {"alert": ALERT}, "Alert: smol: v2: F0 suppressed (rule deception)"),
        ("alert.raised", {"alert": PAUSE}, "Alert: webhook whk_1 (example.com) is paused"),
        (
            "alert.resolved",
            {"alert": ALERT, "resolved_by": "v3"},
            "Resolved: smol: v2: F0 suppressed (rule deception) (by v3)",
        ),
        ("alert.resolved", {"alert": PAUSE, "resolved_by": None}, "Resolved: webhook whk_1 (example.com) is paused"),
        (
            "run.failed",
            FAILED,
            "Run failed: smol: onboard of v3: The worker fell silent. Worker w did not [31m renew.",
        ),
        ("run.failed", {"family": "smol", "kind": "label", "error": None}, "Run failed: smol: label"),
        ("webhook.test", {"webhook": "whk_1", "message": "A test."}, "A test."),
    ],
)
def test_text(type_, data, said):
    assert text(type_, data) == said


@pytest.mark.parametrize("type_", ["checkpoint.judged", "run.failed", "something.new"])
def test_an_event_without_its_parts_is_said_all_the_same(type_):
    assert text(type_, {})


def test_a_long_text_is_cut():
    assert len(text("alert.raised", {"alert": ALERT | {"summary": "F1 " * 5000}})) == 1000


def test_escaped():
    assert escaped("<!here> @channel <https://x|y> & z") == ("&lt;!here&gt; @\u200bchannel &lt;https://x|y&gt; &amp; z")
