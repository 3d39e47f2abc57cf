"""`/v1/webhooks`: secrets that are shown once, tests, deliveries, and URLs that are refused."""

import base64
from datetime import UTC, datetime, timedelta

import pytest

from featurewatch.service.config import Settings
from featurewatch.service.kit.crypto import SecretBox
from featurewatch.service.models import Delivery, IdempotencyRecord, Webhook
from featurewatch.service.models.webhook import url_context
from featurewatch.service.webhooks import logic, sending

URL = "https://ci.example.com/hooks/featurewatch?team=safety"
MASKED = "https://ci.example.com/…"
KEY = "a key for the tests, long enough"


@pytest.fixture
def api_settings(api_settings):
    return api_settings.model_copy(update={"secret_key": type(api_settings.secret_key)(KEY)})


def _url(database, webhook_id: str) -> str:
    """The URL that deliveries go to."""
    with database.read() as session:
        sealed = session.get_one(Webhook, webhook_id).sealed_url
    return SecretBox(Settings(secret_key=KEY)).decrypt(sealed, context=url_context(webhook_id)).decode()


@pytest.fixture
def webhook(client):
    return client.post("/v1/webhooks", json={"url": URL}).json()


def test_a_secret_is_shown_once_and_stored_encrypted(client, database):
    made = client.post("/v1/webhooks", json={"url": URL, "event_types": ["checkpoint.judged", "run.failed"]})
    assert made.status_code == 201
    assert made.headers["Location"] == f"/v1/webhooks/{made.json()['id']}"
    assert made.headers["Cache-Control"] == "no-store"
    secret = made.json()["secret"]
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    shown = client.get(made.headers["Location"]).json()
    assert shown == {name: value for name, value in made.json().items() if name != "secret"}
    assert (shown["url"], shown["event_types"], shown["enabled"]) == (MASKED, ["checkpoint.judged", "run.failed"], True)
    with database.read() as session:
        row = session.get_one(Webhook, shown["id"])
        stored = row.secret + row.sealed_url
    assert secret.encode() not in stored and b"featurewatch" not in stored
    assert base64.b64decode(secret.removeprefix("whsec_")) not in stored


def test_an_own_secret_is_kept(client):
    own = "whsec_" + base64.b64encode(b"s" * 32).decode()
    assert client.post("/v1/webhooks", json={"url": URL, "secret": own}).json()["secret"] == own


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"url": "ftp://example.com/x"}, "invalid-request"),
        ({"url": "https:///x"}, "invalid-request"),
        ({"url": "https://user:word@example.com/"}, "invalid-request"),
        ({"url": "https://example.com:99999/"}, "invalid-request"),
        ({"url": MASKED}, "invalid-request"),
        ({"url": URL, "event_types": ["checkpoint.jugged"]}, "invalid-request"),
        ({"url": URL, "secret": "whsec_short"}, "invalid-request"),
        ({"url": URL, "format": "teams"}, "invalid-request"),
        ({"url": URL, "colour": "red"}, "invalid-request"),
        ({"url": "http://169.254.169.254/latest"}, "address-not-allowed"),
        ({"url": "http://[::ffff:10.0.0.1]/"}, "address-not-allowed"),
    ],
)
def test_what_is_refused(client, body, code):
    answer = client.post("/v1/webhooks", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert client.get("/v1/webhooks").json()["data"] == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://hooks.slack.com/services/T0/B0/XXXXXXXX", "https://hooks.slack.com/…"),
        ("http://ci.example:8080/hook?token=secret", "http://ci.example:8080/…"),
        ("https://ci.example?token=secret", "https://ci.example/…"),
        ("https://ci.example", "https://ci.example"),
        ("https://ci.example/", "https://ci.example/"),
    ],
)
def test_a_url_is_written_and_never_read(client, database, url, shown):
    """Scheme and host are enough to recognise a webhook; the rest is a token as often as not."""
    made = client.post("/v1/webhooks", json={"url": url}).json()
    path = f"/v1/webhooks/{made['id']}"
    answers = [made, client.patch(path, json={"url": url}).json(), client.get(path).json(),
               client.post(f"{path}/rotate").json(), client.get("/v1/webhooks").json()["data"][0]]  # fmt: skip
    assert [answer["url"] for answer in answers] == [shown] * 5
    assert _url(database, made["id"]) == url
    client.post(f"{path}/test")
    texts = [client.get(address).text for address in (path, f"{path}/deliveries", "/v1/audit", "/v1/alerts")]
    texts += [
        client.get(page, headers={"Accept": "text/html"}).text for page in ("/webhooks", f"/webhooks/{made['id']}")
    ]
    assert not any("token=secret" in text or "XXXXXXXX" in text for text in texts)


def test_creating_a_webhook_twice_with_one_idempotency_key_makes_one(client, database):
    headers = {"Idempotency-Key": "once"}
    assert client.post("/v1/webhooks", json={"url": URL}, headers=headers).status_code == 201
    again = client.post("/v1/webhooks", json={"url": URL}, headers=headers)
    assert again.json()["code"] == "secret-shown-once"
    other = client.post("/v1/webhooks", json={"url": URL + "2"}, headers=headers)
    assert other.json()["code"] == "idempotency-key-reused", "the URL that is not shown still counts"
    (only,) = client.get("/v1/webhooks").json()["data"]
    path, headers = f"/v1/webhooks/{only['id']}", {"Idempotency-Key": "change"}
    changed = [client.patch(path, json={"url": URL + "3"}, headers=headers) for _ in range(2)]
    assert changed[0].json() == changed[1].json()
    with database.read() as session:
        assert not any("team=safety" in record.body for record in session.query(IdempotencyRecord))


def test_change_and_remove(client, webhook, database):
    url = f"/v1/webhooks/{webhook['id']}"
    off = client.patch(url, json={"enabled": False}).json()
    assert (off["enabled"], off["disabled_reason"]) == (False, "disabled by a user")
    assert client.post(f"{url}/test").json()["code"] == "webhook-disabled"
    on = client.patch(
        url, json={"enabled": True, "event_types": ["alert.raised"], "url": URL + "2", "format": "slack"}
    ).json()
    assert (on["disabled_reason"], on["event_types"], on["url"]) == (None, ["alert.raised"], MASKED)
    assert _url(database, webhook["id"]) == URL + "2"
    assert on["format"] == "slack"
    assert client.patch(url, json={"url": "http://10.0.0.1/"}).status_code == 422
    client.post(f"{url}/test")
    assert client.delete(url).status_code == 204
    assert client.get(url).json()["code"] == "unknown-webhook"
    with database.read() as session:
        assert session.query(Delivery).count() == 0


def test_a_rotated_secret_is_shown_once_and_stored_encrypted(client, webhook, database):
    url = f"/v1/webhooks/{webhook['id']}"
    assert (webhook["format"], webhook["old_secret_until"]) == ("standard", None)
    made = client.post(f"{url}/rotate")
    assert (made.status_code, made.headers["Cache-Control"]) == (200, "no-store")
    secret = made.json()["secret"]
    assert secret.startswith("whsec_")
    assert secret != webhook["secret"]
    shown = client.get(url).json()
    assert shown == {name: value for name, value in made.json().items() if name != "secret"}
    left = datetime.fromisoformat(shown["old_secret_until"]) - datetime.now(UTC)
    assert timedelta(hours=23) < left <= timedelta(hours=24)
    with database.read() as session:
        row = session.get_one(Webhook, webhook["id"])
    for known in (webhook["secret"], secret):
        assert known.encode() not in row.secret + row.old_secret
        assert base64.b64decode(known.removeprefix("whsec_")) not in row.secret + row.old_secret
    own = "whsec_" + base64.b64encode(b"s" * 32).decode()
    now = client.post(f"{url}/rotate", json={"secret": own, "hours": 0}).json()
    assert (now["secret"], now["old_secret_until"]) == (own, None)
    for body in ({"hours": -1}, {"hours": 721}, {"secret": "whsec_short"}):
        assert client.post(f"{url}/rotate", json=body).status_code == 422
    assert client.post("/v1/webhooks/whk_none/rotate").json()["code"] == "unknown-webhook"


def test_a_test_is_delivered_to_that_webhook_alone(client, webhook):
    other = client.post("/v1/webhooks", json={"url": URL}).json()
    made = client.post(f"/v1/webhooks/{webhook['id']}/test")
    assert (made.status_code, made.json()["type"], made.json()["state"]) == (202, "webhook.test", "pending")
    assert client.get(made.headers["Location"]).json() == made.json()
    assert len(client.get(f"/v1/webhooks/{webhook['id']}/deliveries").json()["data"]) == 1
    assert client.get(f"/v1/webhooks/{other['id']}/deliveries").json()["data"] == []


def test_deliveries_show_their_attempts_and_can_be_sent_again(client, webhook, database):
    base = f"/v1/webhooks/{webhook['id']}/deliveries"
    for key in "ab":
        with database.write() as session:
            logic.emit(session, type="checkpoint.judged", family_id=None, data={"key": key}, key=key)
    with database.write() as session:
        parcels = sending.claim_due(session, limit=5)
        sending.record(
            session, parcels[0], sending.AttemptResult(410, "status 410", 0.25, "no such hook"), pause_after=timedelta()
        )
    rows = client.get(f"{base}?limit=1")
    assert len(rows.json()["data"]) == 1
    assert "next" in rows.links
    (failed, _) = client.get(f"{base}?state=failed").json()["data"]
    assert failed["type"] == "checkpoint.judged"
    logs = [row["log"] for row in client.get(base).json()["data"] if row["log"]]
    assert [(entry["status"], entry["response"]) for (entry,) in logs] == [(410, "no such hook")]
    assert client.post(f"{base}/{failed['id']}/redeliver").json()["code"] == "webhook-disabled"
    client.patch(f"/v1/webhooks/{webhook['id']}", json={"enabled": True})
    again = client.post(f"{base}/{failed['id']}/redeliver")
    assert (again.status_code, again.json()["state"], again.json()["event"]) == (202, "pending", failed["event"])
    with database.write() as session:
        assert [parcel.delivery_id for parcel in sending.claim_due(session, limit=5)] == [failed["id"]]
    assert client.post(f"{base}/dlv_none/redeliver").json()["code"] == "unknown-delivery"
