"""What the edge refuses and says: rate limits, origins, security headers."""

import time

import pytest
from fastapi.testclient import TestClient

from featurewatch.service.app import create_app
from featurewatch.service.auth.limits import network_of
from featurewatch.service.config import Settings
from featurewatch.service.kit.db import Database
from tests.api.test_auth import bearer
from tests.api.test_errors import check_problem

PAGE = "https://app.example"


@pytest.fixture
def api_settings(tmp_path, database_url: str) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        database_url=database_url,
        log_level="ERROR",
        requests_per_minute=3,
        cors_origins=f"{PAGE}, https://other.example",
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that limits go by: it stands still until a test moves it."""
    now = [1e9]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def test_each_key_has_its_own_limit(client: TestClient, database: Database, clock: list[float]) -> None:
    one, two = bearer(database, "read"), bearer(database, "read")
    for left in (2, 1, 0):
        answer = client.get("/v1/families", headers=one)
        assert answer.status_code == 200
        assert answer.headers["ratelimit-policy"] == '"default";q=3;w=60'
        assert answer.headers["ratelimit"].startswith(f'"default";r={left};t=')
    refused = client.get("/v1/families", headers=one)
    check_problem(refused, 429, "too-many-requests")
    assert refused.headers["ratelimit"].startswith('"default";r=0;')
    assert client.get("/v1/families", headers=two).status_code == 200
    clock[0] += int(refused.headers["retry-after"])
    assert client.get("/v1/families", headers=one).status_code == 200


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer fw_guess"}], ids=["no key", "wrong key"])
def test_an_address_without_a_valid_key_is_limited(
    client: TestClient, database: Database, clock: list[float], headers: dict
) -> None:
    for _ in range(3):
        assert client.get("/v1/families", headers=headers).status_code == 401
    check_problem(client.get("/v1/families", headers=headers), 429, "too-many-requests")
    assert client.get("/v1/families", headers=bearer(database, "read")).status_code == 200


def test_probes_are_not_limited(client: TestClient, clock: list[float]) -> None:
    for path in ("/healthz", "/readyz") * 3:
        answer = client.get(path)
        assert answer.status_code == 200
        assert "ratelimit" not in answer.headers


def test_a_service_without_keys_has_no_limit(api_settings: Settings, clock: list[float]) -> None:
    settings = api_settings.model_copy(update={"require_keys": False})
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        assert {client.get("/v1/families").status_code for _ in range(5)} == {200}


def test_addresses_of_one_network_are_one() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:2") != network_of("2001:db8:0:1::1")
    assert network_of("192.0.2.1") != network_of("192.0.2.2")


def test_pages_of_named_origins_only(client: TestClient, database: Database) -> None:
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    allowed = client.options("/v1/families", headers={"Origin": PAGE, **asking})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == PAGE
    answer = client.get("/v1/families", headers={"Origin": PAGE, **bearer(database, "read")})
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "ETag" in answer.headers["access-control-expose-headers"]
    # It is to see why it was refused, too.
    assert client.get("/v1/families", headers={"Origin": PAGE}).headers["access-control-allow-origin"] == PAGE
    foreign = {"Origin": "https://evil.example"}
    assert client.options("/v1/families", headers={**foreign, **asking}).status_code == 400
    assert "access-control-allow-origin" not in client.get("/v1/families", headers=foreign).headers


def test_no_other_page_by_default(api_settings: Settings) -> None:
    with TestClient(create_app(api_settings.model_copy(update={"cors_origins": ""}))) as client:
        answer = client.get("/healthz", headers={"Origin": PAGE})
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("path", ["/healthz", "/v1/families", "/docs", "/openapi.json", "/nothing"])
def test_security_headers(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert ("script-src 'self'" in policy) == (path == "/docs")
    assert "http" not in policy
    assert "strict-transport-security" not in headers


def test_tls_is_asked_for_behind_tls(api_settings: Settings) -> None:
    with TestClient(create_app(api_settings), base_url="https://featurewatch.example") as client:
        assert client.get("/healthz").headers["strict-transport-security"] == "max-age=31536000"
