"""Features as Neuronpedia-style viewers read them."""

import pytest
from fastapi.testclient import TestClient

from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.db import Database
from featurewatch.service.models import Family, Feature
from tests import factories
from tests.api.test_errors import check_problem

URL = "/v1/families/smol"
LOGITS = {"promoted": [[" now", 1.5], ["!", 1.25]], "demoted": [[" go", -2.0]]}


@pytest.fixture(autouse=True)
def _family(database: Database, artifacts: ArtifactStore) -> None:
    """F0, F1 and F5 in v1's code; F7 in none."""
    with database.write() as session:
        family = factories.family(session, hook_points=("resid_post.3", "mlp_out.12"))
        checkpoint = factories.checkpoint(session, family, "v1")
        for hook in ("resid_post.3", "mlp_out.12"):
            factories.source(session, checkpoint, hook, 8)
        for number in (0, 1, 5, 7):
            feature = factories.feature(session, family, number, checkpoint, logits=LOGITS if number == 0 else {})
            factories.verdict(session, checkpoint, feature)
        feature = session.query(Feature).filter_by(number=0).one()
        feature.label, feature.model_label, feature.model_label_by = "a person's", "a model's", "small-1"
        feature.model_label_score = 0.85
        factories.code(session, artifacts, family, checkpoint)


def test_one(client: TestClient) -> None:
    assert client.get(f"{URL}/features/F0/neuronpedia").json() == {
        "modelId": "v1",
        "layer": "12-mlp_out-smol",
        "sourceSetName": "mlp_out-smol",
        "index": "0",
        "pos_str": [" now", "!"],
        "pos_values": [1.5, 1.25],
        "neg_str": [" go"],
        "neg_values": [-2.0],
        "frac_nonzero": 0.01,
        "maxActApprox": 1.5,
        "activations": [
            {
                "tokens": ["The", " caf"],
                "values": [1.5, 0.0],
                "maxValue": 1.5,
                "maxValueTokenIndex": 0,
                "minValue": 0.0,
            },
            {
                "tokens": ["Stop", " now"],
                "values": [0.5, 0.0],
                "maxValue": 0.5,
                "maxValueTokenIndex": 0,
                "minValue": 0.0,
            },
        ],
        "explanations": [
            {"description": "a person's", "typeName": "human", "explanationModelName": None, "scores": []},
            {
                "description": "a model's",
                "typeName": "featurewatch-passages",
                "explanationModelName": "small-1",
                "scores": [{"typeName": "detection", "value": 0.85}],
            },
            {
                "description": "“token0”, “é”",
                "typeName": "featurewatch-tokens",
                "explanationModelName": None,
                "scores": [],
            },
        ],
    }
    assert client.get(f"{URL}/features/F0/neuronpedia?passages=0").json()["activations"] == []
    other = client.get(f"{URL}/features/F5/neuronpedia?checkpoint=v1&passages=1").json()
    assert (other["pos_str"], other["neg_values"], len(other["explanations"])) == ([], [], 1)


def test_all_in_pages(client: TestClient) -> None:
    first = client.get(f"{URL}/neuronpedia?limit=2").json()
    assert [one["index"] for one in first["data"]] == ["0", "1"]
    second = client.get(f"{URL}/neuronpedia?limit=2&cursor={first['next_cursor']}").json()
    assert ([one["index"] for one in second["data"]], second["next_cursor"]) == (["5"], None)
    assert first["data"][0] == client.get(f"{URL}/features/F0/neuronpedia").json()


def test_what_is_not_there(client: TestClient, database: Database) -> None:
    check_problem(client.get(f"{URL}/features/F7/neuronpedia"), 404, "no-code")
    check_problem(client.get(f"{URL}/features/F9/neuronpedia"), 404, "unknown-feature")
    check_problem(client.get(f"{URL}/neuronpedia?checkpoint=v9"), 404, "unknown-checkpoint")
    check_problem(client.get(f"{URL}/neuronpedia?passages=17"), 422, "invalid-request")
    with database.write() as session:
        family = session.query(Family).one()
        factories.checkpoint(session, family, "v2")
        family.positions = {**(family.positions or {}), "documents": None}
    check_problem(client.get(f"{URL}/neuronpedia?checkpoint=v2"), 404, "no-code")
    assert client.get(f"{URL}/features/F0/neuronpedia?checkpoint=v1").json()["activations"] == []
