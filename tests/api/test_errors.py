"""Every error has the same shape, whoever raises it."""

import base64
import json

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from featurewatch.service.app import create_app
from featurewatch.service.config import Settings
from featurewatch.service.kit import db
from featurewatch.service.kit.db import Database
from featurewatch.service.kit.sessions import WriteSession
from featurewatch.service.models import Family
from tests import factories
from tests.services import end_connections


def check_problem(response, status: int, code: str) -> dict:
    """The shape of a problem document, and that nothing is left out."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["type"] == f"/problems/{code}"
    assert document["code"] == code
    assert document["status"] == status
    assert document["title"] and document["detail"]
    assert document["instance"] == response.request.url.path
    assert document["request_id"] == response.headers["x-request-id"]
    assert response.headers["x-content-type-options"] == "nosniff"
    return document


def test_unknown_route(client: TestClient) -> None:
    check_problem(client.get("/v1/nothing"), 404, "not-found")


def test_wrong_method(client: TestClient) -> None:
    response = client.put("/v1/families")
    check_problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "GET, POST"
    assert client.put("/v1/alert-rules/rul_1").headers["allow"] == "GET, PATCH, DELETE"


def test_invalid_body_names_each_fault(client: TestClient) -> None:
    response = client.post("/v1/families", json={"name": "a b", "hook_points": ["resid.1"], "colour": 1})
    document = check_problem(response, 422, "invalid-request")
    faults = {fault["pointer"]: fault for fault in document["errors"]}
    assert set(faults) == {"/name", "/hook_points", "/colour"}
    assert "resid_post.12" in faults["/hook_points"]["detail"]
    assert faults["/colour"]["code"] == "extra_forbidden"
    assert all(fault["location"] == "body" for fault in faults.values())


def test_body_that_is_no_json(client: TestClient) -> None:
    response = client.post("/v1/families", content=b"{", headers={"content-type": "application/json"})
    document = check_problem(response, 422, "invalid-request")
    assert document["errors"][0]["pointer"] == ""


def test_invalid_query(client: TestClient) -> None:
    document = check_problem(client.get("/v1/families?limit=501"), 422, "invalid-request")
    assert document["errors"] == [
        {"location": "query", "pointer": "limit", "code": "less_than_equal", "detail": document["errors"][0]["detail"]}
    ]


def test_body_over_the_limit(client: TestClient) -> None:
    big = b'{"name": "' + b"x" * 1_000_001 + b'"}'
    check_problem(client.post("/v1/families", content=big), 413, "content-too-large")
    # Without a declared length, too.
    check_problem(client.post("/v1/families", content=iter([big[:600_000], big[600_000:]])), 413, "content-too-large")


def test_unexpected_exception_tells_nothing_and_undoes_everything(app: FastAPI, client: TestClient) -> None:
    @app.post("/v1/broken")
    def broken(session: WriteSession) -> None:
        factories.family(session, "half-done")
        raise RuntimeError("the secret is swordfish")

    response = client.post("/v1/broken")
    document = check_problem(response, 500, "internal-error")
    assert "swordfish" not in response.text and document["request_id"] in document["detail"]
    with app.state.database.read() as session:
        assert session.query(Family).count() == 0


def test_a_read_while_the_database_is_away(
    client: TestClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database.is_sqlite:
        return  # a file is there or not
    monkeypatch.setattr(db, "PING_AFTER_SECONDS", 3600.0)
    assert client.get("/v1/families").status_code == 200
    end_connections(database.url)
    response = client.get("/v1/families")
    check_problem(response, 503, "unavailable")
    assert response.headers["retry-after"] == "5"
    assert client.get("/v1/families").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/families/a%00b", None),
        ("GET", "/v1/runs?family=%00", None),
        ("GET", "/v1/audit?actor=%00", None),
        ("GET", "/v1/families/smol/features?q=%00", None),
        ("GET", "/v1/families/smol/lineage?generation=99999999999999999999", None),
        ("POST", "/v1/alert-rules", {"name": "a\0b", "condition": {"kind": "watched"}}),
        ("POST", "/v1/alert-rules", {"name": "\ud800", "condition": {"kind": "watched"}}),
        ("POST", "/v1/alert-rules", {"name": "a", "condition": {"kind": "tag", "tag": "\0"}}),
        ("POST", "/v1/families/smol/checkpoints", {"name": "v1", "uri": "hf://a/b", "metadata": {"a": "\0\ud800"}}),
        ("POST", "/v1/families/smol/checkpoints", {"name": "v1", "uri": "hf://a/b", "metadata": {"a": float("nan")}}),
        ("POST", "/v1/families/smol/checkpoints", {"name": "v1", "uri": "hf://a/b", "metadata": {"a": "\ud800"}}),
        ("POST", "/v1/families/smol/checkpoints", {"name": "v1", "uri": "hf://a/b", "parent": "\0"}),
        ("POST", "/v1/families", {"name": "n", "hook_points": ["resid_post.1"], "policy": {"max_fvu_ratio": 1e999}}),
    ],
)
def test_what_no_database_holds(client: TestClient, method: str, path: str, body: dict | None) -> None:
    client.post("/v1/families", json={"name": "smol", "hook_points": ["resid_post.1"]})
    headers = {"Content-Type": "application/json"}
    answer = client.request(method, path, content=body and json.dumps(body), headers=headers)
    assert answer.status_code in (404, 422), answer.text


def test_a_backslash_before_u0000_is_text(client: TestClient) -> None:
    for name in ("\\u0000", "a\\\\u0000"):
        made = client.post("/v1/alert-rules", json={"name": name, "condition": {"kind": "watched"}})
        assert made.json()["name"] == name


def test_forged_cursors(client: TestClient) -> None:
    """The right digest, and values that no row has: of another type, too large, too many."""
    for name in ("a", "b"):
        client.post("/v1/families", json={"name": name, "hook_points": ["resid_post.1"]})
        client.post("/v1/alert-rules", json={"name": name, "condition": {"kind": "watched"}})
    for path in ("/v1/families", "/v1/alert-rules"):
        cursor = client.get(f"{path}?limit=1").json()["next_cursor"]
        digest, values = json.loads(base64.urlsafe_b64decode(cursor + "=="))
        for value in (1, 2**70, True, None, [], {"t": 1}, {"t": "x"}, {}, "\0"):
            forged = base64.urlsafe_b64encode(json.dumps([digest, [value, *values[1:]]]).encode()).decode()
            check_problem(client.get(f"{path}?cursor={forged}"), 400, "bad-cursor")
        longer = base64.urlsafe_b64encode(json.dumps([digest, [*values, "a"]]).encode()).decode()
        check_problem(client.get(f"{path}?cursor={longer}"), 400, "bad-cursor")


def test_conflict_at_the_commit_is_a_conflict(app: FastAPI, client: TestClient) -> None:
    @app.post("/v1/twice")
    def twice(session: WriteSession) -> None:
        factories.family(session, "same")
        factories.family(session, "same")

    check_problem(client.post("/v1/twice"), 409, "conflict")


def test_foreign_request_ids_are_taken_only_when_harmless(client: TestClient) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": "ci-job-12345"}).headers["x-request-id"] == "ci-job-12345"
    assert client.get("/healthz", headers={"X-Request-ID": "a\tb\tc" * 9}).headers["x-request-id"].startswith("req_")


def test_old_schema_stops_the_start(tmp_path) -> None:
    app = create_app(Settings(data_dir=tmp_path, log_level="ERROR"))
    with pytest.raises(RuntimeError, match="featurewatch db upgrade"), TestClient(app):
        pass


def test_every_operation_documents_its_problems(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation["responses"]["500"]["content"]
            assert content == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}, path
            if path.startswith("/v1"):
                assert {"401", "403", "422"} <= set(operation["responses"]), (method, path)
                assert operation["summary"], (method, path)
