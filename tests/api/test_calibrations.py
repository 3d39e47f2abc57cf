"""Calibrations: asking for one, reading it, and its summary with the family."""

import pytest
from fastapi.testclient import TestClient
from scipy.stats import binom
from sqlalchemy.orm import Session

from featurewatch.service.calibrations.schemas import CalibrationResult, NullResult, Unavailable, rate
from featurewatch.service.kit.db import Database
from featurewatch.service.models import Checkpoint
from featurewatch.service.runs import logic as runs
from featurewatch.service.runs.states import RunState
from featurewatch.service.verdicts.policy import Policy
from tests import factories
from tests.api.test_errors import check_problem

URL = "/v1/families/smol/calibrations"


@pytest.fixture(autouse=True)
def _family(database: Database) -> None:
    """v1 and v2 judged, v3 waiting."""
    with database.write() as session:
        family = factories.family(session)
        parent = None
        for name, state in (("v1", "judged"), ("v2", "judged"), ("v3", "registered")):
            parent = factories.checkpoint(session, family, name, parent=parent, state=state)
            source(session, parent)


def source(session: Session, of: Checkpoint) -> None:
    factories.source(session, of, "resid_post.12", 64).activations = "fam/activations-1"


def finish(database: Database, run_id: str, alarms: int = 2) -> None:
    """As a worker ends it."""
    missing = Unavailable(code="no-weights", detail="there are none")
    nulls = [
        NullResult(null="halves", checkpoints=rate(1, 4), features=rate(alarms, 400)),
        NullResult(null="finetune", checkpoints=rate(0, 0), features=rate(0, 0), unavailable=missing),
    ]
    result = CalibrationResult(
        checkpoint="v2",
        policy=Policy(),
        checkpoints=rate(1, 4),
        features=rate(alarms, 400),
        alerts=1,
        nulls=nulls,
        grid=[],
    )
    with database.write() as session:
        run = runs.claim(session, worker="w", lease_seconds=60)
        assert run is not None and (run.id, run.kind) == (run_id, "calibrate")
        assert runs.finish(
            session, run_id=run.id, attempt=run.attempt, state=RunState.SUCCEEDED, result=result.model_dump(mode="json")
        )


def test_it_is_a_run_of_the_newest_judged_checkpoint(client: TestClient) -> None:
    response = client.post(URL, json={})
    assert response.status_code == 202
    made = response.json()
    assert response.headers["location"] == f"{URL}/{made['id']}"
    assert client.get(response.headers["location"]).json() == made
    assert (made["checkpoint"], made["state"], made["result"]) == ("v2", "queued", None)
    assert made["asked"]["nulls"] == ["repeat", "bfloat16", "int8", "halves", "finetune"]
    run = client.get(f"/v1/runs/{made['id']}").json()
    assert (run["kind"], run["checkpoint"]) == ("calibrate", "v2")
    # Whoever looks at the checkpoint sees the run that judged it, not this one.
    assert client.get("/v1/families/smol/checkpoints/v2").json()["run"] is None


def test_what_is_asked_for_is_kept(client: TestClient) -> None:
    body = {"checkpoint": "v1", "nulls": ["finetune", "repeat", "repeat"], "splits": 7, "finetune": {"steps": 5}}
    asked = client.post(URL, json=body).json()["asked"]
    assert asked["nulls"] == ["repeat", "finetune"]
    assert (asked["checkpoint"], asked["splits"]) == ("v1", 7)
    assert asked["finetune"] == {"steps": 5, "learning_rate": 1e-5, "batch_documents": 4}


@pytest.mark.parametrize(
    "body",
    [{"nulls": []}, {"nulls": ["nothing"]}, {"splits": 0}, {"finetune": {"learning_rate": 0}}, {"policy": {}}],
)
def test_bad_requests(client: TestClient, body: dict) -> None:
    check_problem(client.post(URL, json=body), 422, "invalid-request")


def test_what_cannot_be_calibrated(client: TestClient, database: Database) -> None:
    check_problem(client.post("/v1/families/other/calibrations", json={}), 404, "unknown-family")
    check_problem(client.post(URL, json={"checkpoint": "v9"}), 404, "unknown-checkpoint")
    check_problem(client.post(URL, json={"checkpoint": "v3"}), 409, "not-judged")
    check_problem(client.get(f"{URL}/run_x"), 404, "unknown-calibration")
    with database.write() as session:
        factories.family(session, "empty")
        row = session.query(Checkpoint).filter_by(name="v1").one()
        session.query(factories.Source).filter_by(checkpoint_id=row.id).one().activations = None
    check_problem(client.post("/v1/families/empty/calibrations", json={}), 404, "nothing-judged")
    check_problem(client.post(URL, json={"checkpoint": "v1"}), 409, "activations-gone")


def test_the_family_shows_the_last_one_that_succeeded(client: TestClient, database: Database) -> None:
    assert client.get("/v1/families/smol").json()["calibration"] is None
    ids = []
    for alarms in (3, 2):
        ids.append(client.post(URL, json={}).json()["id"])
        finish(database, ids[-1], alarms)
    waiting = client.post(URL, json={}).json()["id"]
    summary = client.get("/v1/families/smol").json()["calibration"]
    assert (summary["id"], summary["checkpoint"], summary["alerts"]) == (ids[1], "v2", 1)
    assert (summary["features"]["alarms"], summary["features"]["of"]) == (2, 400)
    assert summary["unavailable"] == ["finetune"]
    assert client.get("/v1/families").json()["data"][0]["calibration"] == summary
    listed = client.get(f"{URL}?limit=2").json()
    assert [row["id"] for row in listed["data"]] == [waiting, ids[1]]
    rest = client.get(URL, params={"limit": 2, "cursor": listed["next_cursor"]}).json()["data"]
    assert [row["id"] for row in rest] == [ids[0]]
    assert rest[0]["result"]["nulls"][1]["unavailable"]["code"] == "no-weights"


def test_a_run_of_another_kind_or_family_is_no_calibration(client: TestClient, database: Database) -> None:
    with database.write() as session:
        other = factories.family(session, "other")
        first = factories.checkpoint(session, other, "v1")
        source(session, first)
        run = runs.create(session, family_id=other.id, checkpoint_id=first.id, kind="onboard", params={}).id
    check_problem(client.get(f"/v1/families/other/calibrations/{run}"), 404, "unknown-calibration")
    mine = client.post("/v1/families/other/calibrations", json={}).json()["id"]
    check_problem(client.get(f"{URL}/{mine}"), 404, "unknown-calibration")
    assert [row["id"] for row in client.get("/v1/families/other/calibrations").json()["data"]] == [mine]


@pytest.mark.parametrize(("alarms", "of"), [(0, 8), (0, 2048), (3, 400), (399, 400)])
def test_the_bound_is_the_rate_at_which_so_few_alarms_are_rare(alarms: int, of: int) -> None:
    bound = rate(alarms, of).upper
    assert abs(binom.cdf(alarms, of, bound) - 0.05) < 1e-6


def test_rates_of_nothing_and_of_everything() -> None:
    assert (rate(0, 0).rate, rate(0, 0).upper, rate(5, 5).rate, rate(5, 5).upper) == (None, 1.0, 1.0, 1.0)
