"""Labels from an endpoint over REST: asking for them, and seeing them where features are shown."""

import pytest
from fastapi.testclient import TestClient

from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.db import Database
from featurewatch.service.labels import logic
from featurewatch.service.models import Family
from tests import factories
from tests.api.test_errors import check_problem

URL = "/v1/families/smol/features"


@pytest.fixture(autouse=True)
def _family(database: Database, artifacts: ArtifactStore) -> None:
    """F0 suppressed, F1 present, in v1."""
    with database.write() as session:
        family = factories.family(session)
        checkpoint = factories.checkpoint(session, family, "v1")
        for number, status in enumerate(("suppressed", "present")):
            factories.verdict(session, checkpoint, factories.feature(session, family, number, checkpoint), status)
        factories.code(session, artifacts, family, checkpoint)


def test_it_is_a_run(client: TestClient) -> None:
    response = client.post(f"{URL}/labels", json={})
    assert response.status_code == 202
    run = response.json()
    assert response.headers["location"] == f"/v1/runs/{run['id']}"
    assert client.get(response.headers["location"]).json() == run
    assert (run["kind"], run["checkpoint"], run["state"]) == ("label", "v1", "queued")


def test_bad_requests(client: TestClient, database: Database) -> None:
    for body in ({"features": []}, {"features": ["F0"] * 501}, {"model": "mine"}):
        check_problem(client.post(f"{URL}/labels", json=body), 422, "invalid-request")
    check_problem(client.post(f"{URL}/labels", json={"features": ["F7"]}), 404, "unknown-feature")
    check_problem(client.post(f"{URL}/labels", json={"features": ["7"]}), 404, "unknown-feature")
    check_problem(client.post(f"{URL}/labels", json={"checkpoint": "v9"}), 404, "unknown-checkpoint")
    with database.write() as session:
        family = session.query(Family).one()
        family.positions = {**(family.positions or {}), "documents": None}
    check_problem(client.post(f"{URL}/labels", json={}), 409, "no-text")


def test_labels_are_shown_and_found_and_no_evidence(client: TestClient, database: Database) -> None:
    before = client.get(f"{URL}?checkpoint=v1").json()["data"]
    with database.write() as session:
        found = logic.ModelLabel("words that end a game", "small-1", (0.85, 0.7, 0.93))
        logic.record(session, family_id=session.query(Family).one().id, number=1, run_id="run_1", label=found)
    check_problem(client.post(f"{URL}/labels", json={"features": ["F1", "f9"]}), 404, "unknown-feature")
    row = client.get(f"{URL}/F1").json()
    shown = {
        "label": None,
        "auto_label": "“token1”, “é”",
        "model_label": "words that end a game",
        "model_label_by": "small-1",
        "model_label_score": 0.85,
        "model_label_score_ci": [0.7, 0.93],
    }
    assert {name: row[name] for name in shown} == shown
    assert [one["id"] for one in client.get(f"{URL}?q=END A GAME").json()["data"]] == ["F1"]
    after = client.get(f"{URL}?checkpoint=v1").json()["data"]
    for old, new in zip(before, after, strict=True):
        assert {key for key in old if old[key] != new[key]} <= set(shown)
    check_problem(client.patch(f"{URL}/F1", json={"model_label": "mine"}), 422, "invalid-request")
