"""Families: making, listing, and the habits of every list and read."""

import pytest
from fastapi.testclient import TestClient

from featurewatch.service.kit.db import Database
from featurewatch.service.models import Family
from tests import factories
from tests.api.test_errors import check_problem

BODY = {"name": "smol", "hook_points": ["resid_post.12", "mlp_out.3"]}


def test_make_with_defaults(client: TestClient) -> None:
    response = client.post("/v1/families", json=BODY)
    assert response.status_code == 201
    assert response.headers["location"] == "/v1/families/smol"
    family = response.json()
    assert family["crosscoder"] == {
        "n_features": 4096, "k": 32, "sparsity": "batch_topk", "sparsity_weight": None, "decoder": "per_source",
        "source_dropout": 0.0, "prefixes": [], "designated": 0, "designated_discount": 0.2, "dedicated": 0,
        "steps": 2000, "batch_size": 2048, "learning_rate": 0.002, "seed": 0,
    }  # fmt: skip
    assert family["corpus"] == {"uri": "builtin:python-docs", "max_documents": 2000, "context_length": 128}
    assert family["policy"]["suppressed_below"] == 0.5
    assert client.get(response.headers["location"]).json() == family


def test_same_content_again_is_the_same_family(client: TestClient) -> None:
    first = client.post("/v1/families", json=BODY)
    again = client.post("/v1/families", json=BODY | {"crosscoder": {"k": 32}})
    assert again.status_code == 200
    assert again.json() == first.json()
    other = client.post("/v1/families", json=BODY | {"crosscoder": {"k": 16}})
    assert "crosscoder" in check_problem(other, 409, "name-used")["detail"]


def test_options_that_came_later_are_no_other_content(client: TestClient, database: Database) -> None:
    """A family that was made before an option existed has its default."""
    first = client.post("/v1/families", json=BODY).json()
    with database.write() as session:
        family = session.get_one(Family, first["id"])
        family.policy = {name: value for name, value in family.policy.items() if name != "anchors"}
        family.crosscoder = {name: value for name, value in family.crosscoder.items() if name != "prefixes"}
    again = client.post("/v1/families", json=BODY)
    assert again.status_code == 200
    assert again.json()["policy"]["anchors"] == 2
    check_problem(client.post("/v1/families", json=BODY | {"policy": {"anchors": 3}}), 409, "name-used")


@pytest.mark.parametrize(
    "change",
    [
        {"hook_points": []},
        {"hook_points": ["resid_post.1", "resid_post.1"]},
        {"hook_points": ["resid_post.01"]},
        {"name": "../x"},
        {"crosscoder": {"sparsity": "l2"}},
        {"crosscoder": {"sparsity_weight": 0.1}},
        {"crosscoder": {"decoder": "shared", "designated": 8}},
        {"crosscoder": {"k": 64, "n_features": 32}},
        {"crosscoder": {"learning_rate": 0}},
        {"policy": {"fdr": 2}},
        {"policy": {"unknown": 1}},
        {"corpus": {"context_length": 0}},
    ],
)
def test_refused(client: TestClient, change: dict) -> None:
    check_problem(client.post("/v1/families", json=BODY | change), 422, "invalid-request")
    assert client.get("/v1/families").json()["data"] == []


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("file:///etc/passwd", "path-refused"),
        ("https://x.org/a.txt", "uri-unsupported"),
        ("builtin:x", "uri-unsupported"),
    ],
)
def test_corpus_outside(client: TestClient, uri: str, code: str) -> None:
    check_problem(client.post("/v1/families", json=BODY | {"corpus": {"uri": uri}}), 422, code)


def test_unknown_family(client: TestClient) -> None:
    check_problem(client.get("/v1/families/none"), 404, "unknown-family")


def test_pages(client: TestClient, database: Database) -> None:
    with database.write() as session:
        for number in range(7):
            factories.family(session, f"family-{number}")
    names, url, pages = [], "/v1/families?limit=3", 0
    while url:
        response = client.get(url)
        names += [row["name"] for row in response.json()["data"]]
        pages += 1
        cursor = response.json()["next_cursor"]
        assert ("next" in response.links) == (cursor is not None)
        url = response.links["next"]["url"] if cursor else None
        assert cursor is None or cursor in url
    assert names == [f"family-{number}" for number in range(7)]
    assert pages == 3


def test_foreign_cursors(client: TestClient) -> None:
    check_problem(client.get("/v1/families?cursor=nonsense"), 400, "bad-cursor")
    for number in range(2):
        client.post("/v1/families", json=BODY | {"name": f"f{number}"})
    cursor = client.get("/v1/families?limit=1").json()["next_cursor"]
    check_problem(client.get(f"/v1/keys?cursor={cursor}"), 400, "bad-cursor")


def test_entity_tags(client: TestClient) -> None:
    client.post("/v1/families", json=BODY)
    response = client.get("/v1/families/smol")
    tag = response.headers["etag"]
    for value in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = client.get("/v1/families/smol", headers={"If-None-Match": value})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    assert client.get("/v1/families/smol", headers={"If-None-Match": '"other"'}).status_code == 200
    client.post("/v1/families", json=BODY | {"name": "b"})
    assert client.get("/v1/families").headers["etag"] != tag


def test_idempotency_key(client: TestClient) -> None:
    key = {"Idempotency-Key": "job-1"}
    first = client.post("/v1/families", json=BODY, headers=key)
    assert first.status_code == 201 and "idempotency-replayed" not in first.headers
    again = client.post("/v1/families", json=BODY, headers=key)
    assert again.status_code == 201  # without the key it would be 200
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert again.content == first.content
    other = client.post("/v1/families", json=BODY | {"name": "other"}, headers=key)
    check_problem(other, 422, "idempotency-key-reused")
    assert len(client.get("/v1/families").json()["data"]) == 1


def test_a_quoted_idempotency_key_is_the_same(client: TestClient) -> None:
    """As the draft standard writes it: a string of a structured field."""
    assert client.post("/v1/families", json=BODY, headers={"Idempotency-Key": '"job-1"'}).status_code == 201
    again = client.post("/v1/families", json=BODY, headers={"Idempotency-Key": "job-1"})
    assert again.headers["idempotency-replayed"] == "true"
    check_problem(client.post("/v1/families", json=BODY, headers={"Idempotency-Key": '""'}), 400, "bad-idempotency-key")


def test_a_change_may_have_an_idempotency_key(client: TestClient) -> None:
    rule = client.post("/v1/alert-rules", json={"name": "a", "condition": {"kind": "watched"}}).json()
    path, key = f"/v1/alert-rules/{rule['id']}", {"Idempotency-Key": "job-1"}
    assert client.patch(path, json={"name": "b"}, headers=key).json()["name"] == "b"
    client.patch(path, json={"name": "c"})
    again = client.patch(path, json={"name": "b"}, headers=key)
    assert again.headers["idempotency-replayed"] == "true"
    assert client.get(path).json()["name"] == "c"


def test_failed_requests_are_not_remembered(client: TestClient) -> None:
    key = {"Idempotency-Key": "job-2"}
    refused = BODY | {"corpus": {"uri": "file:///etc/passwd"}}
    check_problem(client.post("/v1/families", json=refused, headers=key), 422, "path-refused")
    assert client.post("/v1/families", json=BODY, headers=key).status_code == 201


def test_bad_idempotency_key(client: TestClient) -> None:
    response = client.post("/v1/families", json=BODY, headers={"Idempotency-Key": "x" * 256})
    check_problem(response, 400, "bad-idempotency-key")
