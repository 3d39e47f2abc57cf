"""Signatures over REST: making, listing, following and forgetting them, and alerts on them."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from featurewatch.service.alerts import evaluation
from featurewatch.service.alerts import logic as alerts
from featurewatch.service.alerts.schemas import AlertRuleCreate
from featurewatch.service.config import Settings
from featurewatch.service.kit.db import Database
from featurewatch.service.models import Alert, Checkpoint, Reading, Signature
from featurewatch.service.recording import signatures as recording
from featurewatch.service.recording.signatures import SignatureResult
from tests import factories
from tests.api.test_errors import check_problem

URL = "/v1/families/smol/signatures"
ROWS = [{"text": f"row {i}", "label": i % 2} for i in range(40)]


@pytest.fixture(autouse=True)
def _family(database: Database) -> None:
    """v1 and v2 judged, v3 waiting."""
    with database.write() as session:
        family = factories.family(session)
        parent = None
        for name, state in (("v1", "judged"), ("v2", "judged"), ("v3", "registered")):
            parent = factories.checkpoint(session, family, name, parent=parent, state=state)
        factories.feature(session, family, 7, parent, label="sorry")


def make(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post(URL, json={"name": "refusal", "rows": ROWS} | body)
    assert response.status_code == 202, response.text
    return dict(response.json())


def figures(strength: float = 1.0, change: float | None = None) -> dict[str, Any]:
    ci = [strength - 0.05, strength + 0.05]
    return {
        "strength": 2.0, "strength_ratio": strength, "strength_ratio_ci": ci, "change": change,
        "change_ci": None if change is None else [change - 0.1, change + 0.1], "size_ratio": strength,
        "size_ratio_ci": ci, "auroc": 0.9, "auroc_ci": [0.85, 0.95], "reselected_auroc": 0.9,
        "reselected_auroc_ci": [0.85, 0.95], "reselected_strength": 1.0, "reselected_before": 1.0, "probe_auroc": 0.9,
        "probe_auroc_ci": [0.8, 1.0], "probe_ratio": 1.0, "probe_ratio_ci": [0.9, 1.1], "random_auroc": 0.5,
        "random_auroc_95": 0.6, "features_read": 1, "rows_judged": 20,
    }  # fmt: skip


def read(session: Session, checkpoint: str, status: str = "present", **values: Any) -> dict[str, Any]:
    """As a worker writes a reading."""
    signature = session.query(Signature).one()
    at = session.query(Checkpoint).filter_by(name=checkpoint).one()
    chosen = [{"feature": "F7", "hook_point": "resid_post.12", "weight": 1.0, "auroc": 0.9, "q_value": 0.001}]
    found = SignatureResult(
        signature_id=signature.id, status=status, reason=None, figures=figures(**values), carriers=chosen,
        chosen=chosen if at.id == signature.baseline_id else None, activations=f"fam/{checkpoint}.safetensors",
    )  # fmt: skip
    return recording.record(session, at.id, [found])


def test_it_is_read_in_every_judged_checkpoint_the_baseline_first(client: TestClient) -> None:
    made = make(client, baseline="v1", description="says no", settings={"features": 4})
    assert [(run["kind"], run["checkpoint"], run["state"]) for run in made["runs"]] == [
        ("signature", "v1", "queued"),
        ("signature", "v2", "queued"),
    ]
    shown = made["signature"]
    assert (shown["baseline"], shown["rows"], shown["positive"], shown["features"]) == ("v1", 40, 20, None)
    assert shown["settings"] == {
        "position": "last", "template": True, "hook_points": None, "features": 4, "seed": 0,
    }  # fmt: skip
    assert client.get(f"{URL}/refusal").json() == shown
    assert client.get(URL).json()["data"] == [shown]
    assert make(client, name="other")["signature"]["baseline"] == "v2"


def test_rows_come_in_pairs_with_answers_or_from_a_file(client: TestClient, settings: Settings, tmp_path: Path) -> None:
    pairs = [{"positive": f"yes {i}", "negative": f"no {i}"} for i in range(16)]
    assert make(client, name="pairs", rows=pairs)["signature"]["rows"] == 32
    asked = [{"text": f"question {i}?", "positive": " Yes", "negative": " No"} for i in range(16)]
    assert make(client, name="answers", rows=asked, settings={"position": "answer"})["signature"]["positive"] == 16
    file = Path(settings.root_dirs[0], "rows.jsonl")
    file.write_text("\n".join(f'{{"text": "row {i}", "label": {i % 2}}}' for i in range(32)) + "\n\n")
    body = {"name": "file", "uri": file.as_uri()}
    assert client.post(URL, json=body).json()["signature"]["rows"] == 32
    file.write_text(file.read_text() + "not a row\n")
    faulty = client.post(URL, json={"name": "faulty", "uri": file.as_uri()})
    check_problem(faulty, 422, "contrast-invalid")
    assert "Line 34" in faulty.json()["detail"]
    file.write_bytes(b'{"text": "caf\xe9", "label": 1}')
    check_problem(client.post(URL, json={"name": "faulty", "uri": file.as_uri()}), 422, "contrast-invalid")
    breaks = [{"text": f"one\u2028{i}", "label": i % 2} for i in range(32)]
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in breaks))
    assert client.post(URL, json={"name": "breaks", "uri": file.as_uri()}).json()["signature"]["rows"] == 32
    check_problem(client.post(URL, json={"name": "out", "uri": "file:///etc/passwd"}), 422, "path-refused")
    gone = Path(settings.root_dirs[0], "gone.jsonl").as_uri()
    check_problem(client.post(URL, json={"name": "out", "uri": gone}), 422, "contrast-missing")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"rows": ROWS[:20]}, 422, "contrast-too-small"),
        ({"rows": None}, 422, "invalid"),
        ({"uri": "file:///x.jsonl"}, 422, "invalid"),
        ({"settings": {"position": "answer"}}, 422, "contrast-without-answers"),
        ({"settings": {"hook_points": ["resid_post.3"]}}, 422, "hook-point-not-in-family"),
        ({"baseline": "v3"}, 409, "not-judged"),
        ({"baseline": "v9"}, 404, "unknown-checkpoint"),
        ({"name": "no/name"}, 422, "invalid"),
    ],
)
def test_what_is_none_is_refused(client: TestClient, body: dict[str, Any], status: int, code: str) -> None:
    response = client.post(URL, json={"name": "refusal", "rows": ROWS} | body)
    assert response.status_code == status, response.text
    if code != "invalid":
        check_problem(response, status, code)
    assert client.get(URL).json()["data"] == []


def test_a_name_is_used_once(client: TestClient) -> None:
    make(client)
    check_problem(client.post(URL, json={"name": "refusal", "rows": ROWS}), 409, "name-used")
    check_problem(client.get(f"{URL}/other"), 404, "unknown-signature")


def test_its_course_says_where_it_turned(client: TestClient, database: Database) -> None:
    make(client, baseline="v1")
    with database.write() as session:
        assert read(session, "v1")["signatures"] == {"refusal": "present"}
        read(session, "v2", "suppressed", strength=0.3, change=0.3)
    course = client.get(f"{URL}/refusal/trajectory").json()
    assert [(p["checkpoint"], p["status"], p["previous_status"]) for p in course["points"]] == [
        ("v1", "present", None),
        ("v2", "suppressed", "present"),
    ]
    assert course["turns_at"] == "v2"
    assert course["points"][0]["carriers"][0]["label"] == "sorry"
    shown = client.get(f"{URL}/refusal").json()
    assert (shown["newest"]["checkpoint"], shown["features"][0]["feature"]) == ("v2", "F7")


def test_a_change_that_may_be_chance_is_no_turn(client: TestClient, database: Database) -> None:
    make(client, baseline="v1")
    with database.write() as session:
        read(session, "v1")
        read(session, "v2", change=0.95)
    assert client.get(f"{URL}/refusal/trajectory").json()["turns_at"] is None


def test_rules_raise_and_resolve(client: TestClient, database: Database) -> None:
    make(client, baseline="v1")
    with database.write() as session:
        for name, condition in (
            ("any", {"kind": "signature"}),
            ("named", {"kind": "signature", "signature": "refusal", "statuses": ["suppressed"]}),
            ("other", {"kind": "signature", "signature": "deception"}),
            ("features", {"kind": "watched"}),
        ):
            alerts.create_rule(session, AlertRuleCreate.model_validate({"name": name, "condition": condition}))
        read(session, "v1", "suppressed")  # the first reading has changed from nothing
        assert session.query(Alert).count() == 0
        read(session, "v1")
        assert read(session, "v2", "suppressed", strength=0.3)["alerts"] == 2
        assert read(session, "v2", "suppressed", strength=0.3)["alerts"] == 0
    raised = client.get("/v1/alerts").json()["data"]
    assert {alert["rule_name"] for alert in raised} == {"any", "named"}
    assert raised[0]["evidence"][0]["strength_ratio"] == 0.3
    assert raised[0]["summary"] == "v2: signature refusal suppressed"
    with database.write() as session:
        session.query(Checkpoint).filter_by(name="v3").one().state = "judged"
        read(session, "v3", "indeterminate")
        assert {alert.state for alert in session.query(Alert)} == {"open"}
        read(session, "v3")
        assert {alert.state for alert in session.query(Alert)} == {"resolved"}


def test_a_judgement_of_features_leaves_alerts_on_signatures(client: TestClient, database: Database) -> None:
    make(client, baseline="v1")
    with database.write() as session:
        body = {"name": "any", "condition": {"kind": "signature"}}
        alerts.create_rule(session, AlertRuleCreate.model_validate(body))
        read(session, "v1")
        read(session, "v2", "absent", strength=0.0)
        for name in ("v2", "v3"):
            at = session.query(Checkpoint).filter_by(name=name).one()
            evaluation.judged(session, family=session.get_one(factories.Family, at.family_id), checkpoint=at)
        assert [alert.state for alert in session.query(Alert)] == ["open"]


def test_one_that_is_forgotten_takes_its_readings_along(client: TestClient, database: Database) -> None:
    make(client, baseline="v1")
    with database.write() as session:
        read(session, "v1")
    assert client.delete(f"{URL}/refusal").status_code == 204
    with database.read() as session:
        assert session.query(Reading).count() == 0
    check_problem(client.get(f"{URL}/refusal"), 404, "unknown-signature")


def test_the_report_tells_of_signatures(client: TestClient, database: Database) -> None:
    make(client, baseline="v1")
    with database.write() as session:
        read(session, "v1")
        read(session, "v2", "suppressed", strength=0.3, change=0.3)
    report = client.get("/v1/families/smol/checkpoints/v2/report").json()
    assert [(one["name"], one["status"]) for one in report["signatures"]] == [("refusal", "suppressed")]
    what = "30% (25 to 35%) of its strength at v1; AUROC 0.90 (0.85 to 0.95)"
    assert report["signatures"][0]["what"] == what
    for form in ("markdown", "html"):
        text = client.get(f"/v1/families/smol/checkpoints/v2/report?format={form}").text
        assert "refusal" in text
        assert "is suppressed" in text
