"""API keys: scopes, expiry, revocation, and what a service without keys refuses."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient

from featurewatch.service.app import create_app
from featurewatch.service.auth import keys, logic
from featurewatch.service.config import Settings
from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.db import Database
from featurewatch.service.models import ApiKey
from tests.api.test_errors import check_problem

FAMILY = {"name": "smol", "hook_points": ["resid_post.1"]}


@pytest.fixture
def api_settings(tmp_path, database_url: str) -> Settings:
    return Settings(data_dir=tmp_path / "data", database_url=database_url, roots=str(tmp_path), log_level="ERROR")


def bearer(database: Database, *scopes: str, **options) -> dict[str, str]:
    with database.write() as session:
        _, key = logic.create(session, name="test", scopes=scopes, **options)
    return {"Authorization": f"Bearer {key}"}


def test_without_a_key(client: TestClient) -> None:
    nouns = ("families", "keys", "runs", "runs/run_1/log", "webhooks", "alerts")
    for path in (*(f"/v1/{noun}" for noun in nouns), "/metrics"):
        response = client.get(path)
        check_problem(response, 401, "unauthenticated")
        assert response.headers["www-authenticate"].startswith("Bearer")
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize("header", ["Basic abc", "Bearer", "Bearer  "])
def test_other_schemes(client: TestClient, header: str) -> None:
    check_problem(client.get("/v1/families", headers={"Authorization": header}), 401, "unauthenticated")


def test_scopes(client: TestClient, database: Database) -> None:
    read, write, admin = (bearer(database, scope) for scope in ("read", "write", "admin"))
    check_problem(client.post("/v1/families", json=FAMILY, headers=read), 403, "missing-scope")
    assert client.get("/v1/families", headers=read).status_code == 200
    assert client.post("/v1/families", json=FAMILY, headers=write).status_code == 201
    assert client.get("/v1/families/smol", headers=write).status_code == 200
    check_problem(client.get("/v1/runs/run_1/log", headers=read), 404, "unknown-run")
    check_problem(client.get("/v1/keys", headers=write), 403, "missing-scope")
    assert len(client.get("/v1/keys", headers=admin).json()["data"]) == 3


def test_wrong_expired_and_revoked_keys(client: TestClient, database: Database) -> None:
    good = bearer(database, "read")
    changed = good["Authorization"][:-1] + ("0" if good["Authorization"][-1] != "0" else "1")
    for wrong in (f"Bearer {keys.make_key()}", changed, "Bearer fw_x"):
        check_problem(client.get("/v1/families", headers={"Authorization": wrong}), 401, "invalid-key")
    expired = bearer(database, "read", expires_at=utcnow() - timedelta(seconds=1))
    check_problem(client.get("/v1/families", headers=expired), 401, "expired-key")
    admin = bearer(database, "admin")
    rows = {row["prefix"]: row["id"] for row in client.get("/v1/keys", headers=admin).json()["data"]}
    prefix = keys.lookup_prefix(good["Authorization"].removeprefix("Bearer "))
    assert client.delete(f"/v1/keys/{rows[prefix]}", headers=admin).status_code == 204
    check_problem(client.get("/v1/families", headers=good), 401, "invalid-key")


def test_a_right_prefix_is_not_enough(client: TestClient, database: Database) -> None:
    good = bearer(database, "read")["Authorization"].removeprefix("Bearer ")
    body = keys.lookup_prefix(good) + "0" * 32
    forged = body + keys._checksum(body)
    assert keys.well_formed(forged)
    check_problem(client.get("/v1/families", headers={"Authorization": f"Bearer {forged}"}), 401, "invalid-key")


def test_the_key_is_shown_once_and_stored_hashed(client: TestClient, database: Database) -> None:
    admin = bearer(database, "admin") | {"Idempotency-Key": "k1"}
    response = client.post("/v1/keys", json={"name": "ci", "scopes": ["write"]}, headers=admin)
    assert response.status_code == 201
    assert response.headers["cache-control"] == "no-store"
    key = response.json()["key"]
    assert client.post("/v1/families", json=FAMILY, headers={"Authorization": f"Bearer {key}"}).status_code == 201
    assert "key" not in client.get(response.headers["location"], headers=admin).json()
    with database.read() as session:
        row = session.get(ApiKey, response.json()["id"])
        assert key not in (row.hash, row.prefix) and row.hash == keys.hash_key(key)
    # The remembered answer does not hold it either.
    again = client.post("/v1/keys", json={"name": "ci", "scopes": ["write"]}, headers=admin)
    check_problem(again, 409, "secret-shown-once")


def test_last_use_is_noted(client: TestClient, database: Database) -> None:
    read = bearer(database, "read")
    client.get("/v1/families", headers=read)
    rows = client.get("/v1/keys", headers=bearer(database, "admin")).json()["data"]
    assert [row["last_used_at"] is not None for row in rows if row["scopes"] == ["read"]] == [True]


def test_idempotency_keys_of_two_callers_do_not_meet(client: TestClient, database: Database) -> None:
    one, two = (bearer(database, "write") | {"Idempotency-Key": "same"} for _ in range(2))
    assert client.post("/v1/families", json=FAMILY, headers=one).status_code == 201
    answer = client.post("/v1/families", json=FAMILY | {"name": "other"}, headers=two)
    assert answer.status_code == 201 and "idempotency-replayed" not in answer.headers
    check_problem(client.post("/v1/families", json=FAMILY, headers={"Idempotency-Key": "same"}), 401, "unauthenticated")


def test_audit_log_has_each_write_that_was_carried_out(client: TestClient, database: Database) -> None:
    write, admin = bearer(database, "write"), bearer(database, "admin")
    made = client.post("/v1/families", json=FAMILY, headers=write)
    client.post("/v1/families", json=FAMILY | {"hook_points": ["mlp_out.0"]}, headers=write)  # 409
    entries = client.get("/v1/audit", headers=admin).json()["data"]
    assert [(entry["method"], entry["path"], entry["status"]) for entry in entries] == [("POST", "/v1/families", 201)]
    assert entries[0]["request_id"] == made.headers["x-request-id"]
    assert entries[0]["actor"].startswith("key_")


class TestWithoutKeys:
    """The embedded service: everybody on this machine may do everything, but no page of another site may."""

    @pytest.fixture
    def client(self, tmp_path, database_url: str) -> Iterator[TestClient]:
        settings = Settings(data_dir=tmp_path, database_url=database_url, require_keys=False, log_level="ERROR")
        with TestClient(create_app(settings), base_url="http://127.0.0.1:8000") as client:
            yield client

    def test_no_key_needed(self, client: TestClient) -> None:
        assert client.post("/v1/families", json=FAMILY).status_code == 201
        assert client.get("/v1/keys").status_code == 200

    @pytest.mark.parametrize(
        "host",
        ["evil.example:8000", "intranet", "featurewatch:8000", "10.0.0.7", "192.168.1.5:8000", "0.0.0.0:8000",
         "[fe80::1]:8000", "[2606:4700::1]", "localhost.evil.example", "127.0.0.1.nip.io",
         "evil.example@localhost", "localhost/evil", "[::1", ""],
    )  # fmt: skip
    @pytest.mark.parametrize("path", ["/v1/families", "/families", "/healthz"])
    def test_foreign_host_names(self, client: TestClient, host: str, path: str) -> None:
        refused = client.get(path, headers={"Host": host})
        check_problem(refused, 400, "foreign-host")
        assert "127.0.0.1" in refused.json()["detail"], "it says what to use"

    @pytest.mark.parametrize(
        "host",
        ["localhost", "localhost:8000", "LOCALHOST:8000", "localhost.", "app.localhost", "127.0.0.1:8000",
         "127.1.2.3", "[::1]:8000"],
    )  # fmt: skip
    def test_names_of_this_machine(self, client: TestClient, host: str) -> None:
        assert client.get("/v1/families", headers={"Host": host}).status_code == 200

    @pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
    def test_writes_from_foreign_pages(self, client: TestClient, headers: dict) -> None:
        check_problem(client.post("/v1/families", json=FAMILY, headers=headers), 403, "foreign-origin")
        assert client.get("/v1/families").json()["data"] == []

    def test_writes_from_its_own_page(self, client: TestClient) -> None:
        own = {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}
        assert client.post("/v1/families", json=FAMILY, headers=own).status_code == 201
