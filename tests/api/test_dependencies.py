"""Dependencies over REST: asking for them, reading them, comparing, and the flag beside the verdict."""

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from featurewatch.service.alerts import evaluation
from featurewatch.service.alerts.events import ComparedFeature, DependenciesCompared
from featurewatch.service.dependencies import figures, logic, queries
from featurewatch.service.dependencies.store import load
from featurewatch.service.families import logic as families
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.db import Database
from featurewatch.service.models import Checkpoint, Run, Signature
from featurewatch.service.recording import dependencies as recording
from featurewatch.service.verdicts.policy import Policy
from tests import factories
from tests.api.test_errors import check_problem

URL = "/v1/families/smol/checkpoints/v2/dependencies"
HOOK = "resid_post.4"
K, NUMBERS = 20, np.arange(5)
PROFILES = {"v1": [1.0, 0.8, 0.0, 0.0, 0.3], "v2": [0.0, 0.0, 0.9, 0.9, 0.3], "v3": [0.0, 0.0, 0.9, 0.9, 0.3]}


@pytest.fixture(autouse=True)
def _family(database: Database, artifacts: ArtifactStore) -> None:
    """v1, v2 and v3 judged, with 6 features; F5 is what the others lead to; in v1 F4 is absent."""
    with database.write() as session:
        family = factories.family(session, hook_points=(HOOK, "resid_post.12"))
        parent = None
        for name in PROFILES:
            parent = factories.checkpoint(session, family, name, parent=parent)
            if name == "v1":
                features = [factories.feature(session, family, number, parent) for number in range(7)]
                factories.code(session, artifacts, family, parent)
            for feature in features[:6]:
                absent = name == "v1" and feature.number == 4
                factories.verdict(session, parent, feature, "absent" if absent else "present")


def keep(
    session: Session, artifacts: ArtifactStore, name: str, *, hook: str = "resid_post.12", number: int = 5,
    earlier: bool = True,
) -> None:  # fmt: skip
    """As a worker writes it; `earlier`: of a family that is read at an earlier hook point too."""
    rng = np.random.default_rng(len(name))
    counts = rng.integers(5, 20, K).astype(float)
    sums = (np.array(PROFILES[name]) + 0.05 * rng.standard_normal((K, 5))) * counts[:, None]
    rest = np.stack([0.1 * counts, 0.2 * counts, 0.0 * counts], 1)
    values = sums.sum(1) + rest.sum(1) - 2.0 * counts
    artifact = f"fam/dependencies-{name}-{number}"
    tensors = {"counts": counts, "values": values}
    if earlier:
        tensors |= {f"numbers.{HOOK}": NUMBERS, f"sums.{HOOK}": sums, f"rest.{HOOK}": rest}
    factories.save(artifacts, artifact, tensors)
    profile = load(artifacts, artifact)
    words = ([" stop", " the"], np.stack([2.0 * counts, 0.0 * counts], 1))
    graph = figures.graph(profile, -2.0, words, [(" no", 0.4)], Policy())
    effect = figures.effect(counts, 0.5 * counts, 0.4 * counts, np.stack([0.1 * counts] * 3), {}, Policy())
    assert effect is not None
    row = {
        "feature": number, "method": "gradient", "hook_point": hook, "n_positions": int(counts.sum()),
        "artifact": artifact, "graph": graph.model_dump(mode="json"), "effect": effect.model_dump(mode="json"),
    }  # fmt: skip
    checkpoint = session.query(Checkpoint).filter_by(name=name).one()
    recording.record(session, artifacts, checkpoint_id=checkpoint.id, run_id=f"run_{name}", rows=[row])


def test_it_is_a_run_of_the_checkpoint(client: TestClient) -> None:
    response = client.post(URL, json={"features": ["F5", "F2", "F5"], "positions": 500})
    assert response.status_code == 202
    run = response.json()
    assert response.headers["location"] == f"/v1/runs/{run['id']}"
    assert (run["kind"], run["checkpoint"], run["state"]) == ("dependencies", "v2", "queued")
    assert client.get("/v1/families/smol/checkpoints/v2").json()["run"] is None


def test_what_cannot_be_asked(client: TestClient, database: Database) -> None:
    for body in ({"features": []}, {"features": ["F1"], "method": "x"}, {"features": ["F1"], "positions": 1}):
        check_problem(client.post(URL, json=body), 422, "invalid-request")
    check_problem(client.post(URL, json={"features": ["F99"]}), 404, "unknown-feature")
    check_problem(client.post(URL, json={"features": ["F6"]}), 422, "feature-not-in-checkpoint")
    check_problem(client.post(URL, json={"features": ["F1"], "hook_point": "mlp_out.1"}), 422, "unknown-hook-point")
    check_problem(client.post(URL.replace("v2", "v9"), json={"features": ["F1"]}), 404, "unknown-checkpoint")
    with database.write() as session:
        session.query(Checkpoint).filter_by(name="v2").one().uri = "activations+file:///x"
    check_problem(client.post(URL, json={"features": ["F1"]}), 409, "model-needed")
    check_problem(client.get("/v1/families/smol/features/F5/dependencies"), 404, "no-dependencies")


def test_a_graph_with_all_that_it_rests_on(client: TestClient, database: Database, artifacts: ArtifactStore) -> None:
    with database.write() as session:
        keep(session, artifacts, "v1")
    found = client.get("/v1/families/smol/features/F5/dependencies").json()
    assert (found["feature"], found["checkpoint"], found["method"]) == ("F5", "v1", "gradient")
    graph = found["graph"]
    assert [edge["feature"] for edge in graph["edges"]] == ["F0", "F1", "F4"]
    edge = graph["edges"][0]
    assert edge["ci"][0] < edge["weight"] < edge["ci"][1] and edge["q"] < 1e-6
    place = graph["sources"][0]
    assert place["hook_point"] == HOOK and place["total"] == pytest.approx(1, abs=1e-4)
    assert place["explained"] == pytest.approx(2.1 / 2.4, abs=0.03)
    assert graph["tokens"] == [{"token": " stop", "weight": 2.0, "ci": pytest.approx([2, 2], abs=1e-3)}]
    assert graph["logits"] == [{"token": " no", "change": 0.4}]
    effect = found["effect"]
    assert effect["effective"] and (effect["ablate"], effect["random_most"]) == (0.5, 0.1)
    assert "5.0 times" in effect["text"] and found["comparison"] is None


def test_two_checkpoints_and_the_flag(client: TestClient, database: Database, artifacts: ArtifactStore) -> None:
    with database.write() as session:
        for name in PROFILES:
            keep(session, artifacts, name)
    url = "/v1/families/smol/features/F5/dependencies"
    compared = client.get(url, params={"checkpoint": "v2", "baseline": "v1"}).json()["comparison"]
    assert compared["rewired"] is True and compared["agreement"] < 0.1
    assert {edge["feature"] for edge in compared["lost"]} == {"F0", "F1"}
    assert {edge["feature"] for edge in compared["gained"]} == {"F2", "F3"}
    assert compared["changed"] == [] and compared["compared"] == 4, "F4 is absent in v1: not compared"
    same = client.get(url, params={"checkpoint": "v3", "baseline": "v2"}).json()["comparison"]
    assert same["rewired"] is False and not same["lost"] + same["gained"] + same["changed"]
    points = client.get("/v1/families/smol/features/F5/trajectory").json()["points"]
    assert [point["rewired"] for point in points] == [None, True, False]
    rows = client.get("/v1/families/smol/features?checkpoint=v2").json()["data"]
    assert {row["id"]: row["rewired"] for row in rows if row["rewired"] is not None} == {"F5": True}


def test_a_report_tells_what_strength_does_not(
    client: TestClient, database: Database, artifacts: ArtifactStore
) -> None:
    with database.write() as session:
        for name in PROFILES:
            keep(session, artifacts, name)
    url = "/v1/families/smol/checkpoints/v2/report"
    (found,) = client.get(url).json()["circuits"]
    assert (found["feature"], found["status"], found["rewired"], found["effective"]) == ("F5", "present", True, True)
    assert "is present, but computed from different features than at v1 (gained F2, F3; lost F0, F1" in found["what"]
    assert client.get("/v1/families/smol/checkpoints/v3/report").json()["circuits"] == []
    for form in ("markdown", "html"):
        assert "computed from different features" in client.get(f"{url}?format={form}").text
    with database.write() as session:
        at = session.query(Checkpoint).filter_by(name="v3").one()
        graph = queries.one(session, at.id, 5, None)
        assert graph is not None and graph.effect is not None
        graph.effect = {**graph.effect, "effective": False}
    (found,) = client.get("/v1/families/smol/checkpoints/v3/report").json()["circuits"]
    assert found["what"].endswith("is present, but nothing downstream uses it")


def test_a_rule_on_rewiring(client: TestClient, database: Database, artifacts: ArtifactStore) -> None:
    for name, feature in (("any", None), ("ours", "f5"), ("other", "F3")):
        condition = {"kind": "rewired", "feature": feature}
        assert client.post("/v1/alert-rules", json={"name": name, "condition": condition}).status_code == 201
    with database.write() as session:
        for name in PROFILES:
            keep(session, artifacts, name)
    raised = client.get("/v1/alerts").json()["data"]
    assert {(alert["rule_name"], alert["checkpoint"]) for alert in raised} == {("any", "v2"), ("ours", "v2")}
    assert raised[0]["summary"] == "v2: F5 rewired"
    assert set(raised[0]["evidence"][0]["lost"]) == {"F0", "F1"}
    with database.write() as session:  # a second look that finds nothing
        at = session.query(Checkpoint).filter_by(name="v2").one()
        family = families.get(session, "smol")
        again = [ComparedFeature("F5", False, 1.0, [], [])]
        evaluation.evaluate(session, at, DependenciesCompared(family_id=family.id, features=again))
        verdicts = evaluation.judged(session, family=family, checkpoint=at)
    assert verdicts == []
    assert {alert["state"] for alert in client.get("/v1/alerts").json()["data"]} == {"resolved"}


def test_what_cannot_be_compared_says_why(client: TestClient, database: Database, artifacts: ArtifactStore) -> None:
    url = "/v1/families/smol/features/F5/dependencies?checkpoint=v2&baseline=v1"
    with database.write() as session:
        keep(session, artifacts, "v2")
    check_problem(client.get(url), 404, "no-dependencies")
    with database.write() as session:
        keep(session, artifacts, "v1", hook=HOOK)
    compared = client.get(url).json()["comparison"]
    assert compared["rewired"] is None and "request both at the same hook point" in compared["why_not"]
    with database.write() as session:
        keep(session, artifacts, "v1")
    artifacts.remove("fam/dependencies-v1-5")
    assert "were removed" in client.get(url).json()["comparison"]["why_not"]
    with database.write() as session:
        keep(session, artifacts, "v1", number=4)
        keep(session, artifacts, "v2", number=4)
    compared = client.get(url.replace("F5", "F4")).json()["comparison"]
    assert compared["why_not"] == "the feature is not present in both checkpoints"
    with database.write() as session:
        keep(session, artifacts, "v1", number=3, earlier=False)
        keep(session, artifacts, "v2", number=3, earlier=False)
    compared = client.get(url.replace("F5", "F3")).json()["comparison"]
    assert "no feature at an earlier hook point" in compared["why_not"]


def test_watched_features_are_looked_at_as_the_policy_says(database: Database) -> None:
    with database.write() as session:
        family = families.get(session, "smol")
        checkpoint = session.query(Checkpoint).filter_by(name="v1").one()
        for number in (0, 4, 6):  # 4 is absent there, and 6 was not judged
            session.get_one(factories.Feature, (family.id, number)).watched = True
        family.policy = {**family.policy, "dependencies": False}
        session.flush()
        assert logic.queue_watched(session, checkpoint.id) == []
        family.policy = {**family.policy, "dependencies": True}
        session.flush()
        (run,) = logic.queue_watched(session, checkpoint.id)
        assert run.params["features"] == ["F0"]
        assert queries.waiting(session, checkpoint.id) and session.query(Run).count() == 1


def test_the_strongest_features_of_signatures_are_looked_at_too(database: Database) -> None:
    """One feature at two hook points is one; what is not there any more is left out."""
    chosen = [{"feature": name, "hook_point": hook} for name, hook in
              (("F5", "a"), ("F4", "a"), ("F5", "b"), ("F0", "a"), ("F1", "a"))]  # fmt: skip
    with database.write() as session:
        family = families.get(session, "smol")
        checkpoint = session.query(Checkpoint).filter_by(name="v1").one()
        for name, found in (("unread", None), ("refusal", chosen)):
            session.add(
                Signature(
                    family_id=family.id,
                    name=name,
                    description="",
                    settings={},
                    contrast="x",
                    n_rows=32,
                    n_positive=16,
                    baseline_id=checkpoint.id,
                    chosen=found,
                )
            )
        session.flush()
        (run,) = logic.queue_watched(session, checkpoint.id)
        assert run.params["features"] == ["F5", "F0"]


def test_the_parent_is_looked_at_first_where_it_was_not(database: Database, artifacts: ArtifactStore) -> None:
    with database.write() as session:
        family = families.get(session, "smol")
        keep(session, artifacts, "v1")
        for number in (0, 5):
            session.get_one(factories.Feature, (family.id, number)).watched = True
        session.flush()
        checkpoints = {name: session.query(Checkpoint).filter_by(name=name).one() for name in PROFILES}
        found = logic.queue_watched(session, checkpoints["v2"].id)
        asked = [(run.checkpoint_id, run.params["features"]) for run in found]
        assert asked == [(checkpoints["v1"].id, ["F0"]), (checkpoints["v2"].id, ["F0", "F5"])]


def test_answers_are_held_against_random_directions() -> None:
    rng = np.random.default_rng(0)
    plain = rng.standard_normal(40)
    change = np.stack([-0.5 + 0.2 * rng.standard_normal(40), np.full(40, 0.4), np.full(40, 0.1), np.full(40, -0.3)])
    margins = np.concatenate([plain[None], plain + change])
    found = figures.answer("honesty", margins, Policy())
    assert (found.texts, found.effective, found.random_most) == (40, True, 0.3)
    assert found.ablate_ci[0] < -0.5 < found.ablate_ci[1] < -0.3
    assert found.amplify == pytest.approx(0.4) and found.margin == pytest.approx(plain.mean(), abs=1e-5)
    counts = np.full(K, 10.0)
    both = figures.effect(
        counts, counts, counts, np.stack([counts]), {"one": margins[:, :1], "two": margins[:, :2]}, Policy()
    )
    assert both is not None and [one.signature for one in both.answers] == ["two"], "one text has no interval"
    margins[4] = plain + 0.6
    assert not figures.answer("honesty", margins, Policy()).effective, "one random direction does more"


def test_no_effect_is_said_so() -> None:
    counts = np.full(K, 10.0)
    random = np.stack([0.1 * counts, 0.6 * counts])
    found = figures.effect(counts, 0.5 * counts, counts, random, {}, Policy())
    assert found is not None and not found.effective, "one random direction does more"
    assert "no more than random directions" in found.text
    counts[2:] = 0
    assert figures.effect(counts, counts, counts, random, {}, Policy()) is None
