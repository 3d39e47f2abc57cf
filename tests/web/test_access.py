"""Signing in, forged forms, and what each scope allows."""

import html
import re
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from featurewatch.service.app import create_app
from featurewatch.service.auth import logic
from featurewatch.service.auth.browser import Visits, begin
from featurewatch.service.config import Settings
from featurewatch.service.families import logic as families
from featurewatch.service.features import logic as features
from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.logs import configure_logging
from featurewatch.service.kit.problems import UnavailableError
from featurewatch.service.models import Alert, AlertRule, ApiKey, AuditEntry, Run, Webhook
from tests.web.conftest import BASE, Browser, Installation, token_of
from tests.web.filled import FAMILY

HERE = f"/families/{FAMILY}"


def test_a_page_redirects_to_the_login_and_back(filled: Installation) -> None:
    browser = filled.browser(None)
    redirect = browser.get(f"{HERE}/features?sort=id")
    assert redirect.status_code == 303
    assert redirect.headers["location"] == f"/login?next=%2Ffamilies%2F{FAMILY}%2Ffeatures%3Fsort%3Did"
    part = browser.get(f"{HERE}/features", headers={"hx-request": "true"})
    assert part.headers["hx-redirect"] == "/login?next=%2Ffamilies"
    browser.key = filled.keys["read"]
    assert browser.sign_in(f"{HERE}/features").headers["location"] == f"{HERE}/features"
    assert browser.get("/login").headers["location"] == "/families", "no login form for a signed-in user"


def test_a_link_on_another_site_does_not_sign_out(filled: Installation) -> None:
    """The browser withholds a strict cookie. No new cookie may replace it, and the page reloads itself."""
    browser = filled.browser(None)
    for path in (HERE, "/login", "/nowhere"):
        answer = browser.get(path, headers={"sec-fetch-site": "cross-site"})
        assert answer.status_code == 200 and 'http-equiv="refresh" content="0"' in answer.text
        assert "set-cookie" not in answer.headers
    reader = filled.browser("read")
    assert "Lineage" in reader.get(HERE, headers={"sec-fetch-site": "cross-site"}).text, (
        "with the cookie, the page is shown at once"
    )


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example/x", "/\\evil.example", "javascript:1", ""])
def test_signing_in_never_redirects_to_another_site(filled: Installation, target: str) -> None:
    browser = filled.browser(None)
    browser.key = filled.keys["read"]
    browser.token = token_of(browser.page("/login"))
    assert browser.send("/login", {"key": browser.key, "next": target}).headers["location"] == "/families"


def test_the_cookie_contains_no_key_and_works_for_pages_only(filled: Installation) -> None:
    browser = filled.browser(None)
    browser.token = token_of(browser.page("/login"))
    wrong = browser.send("/login", {"key": "fw_nonsense", "next": "/families"})
    assert wrong.status_code == 401 and "Invalid API key" in wrong.text and "fw_nonsense" not in wrong.text
    browser.key = filled.keys["admin"]
    cookie = browser.sign_in().headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert browser.key not in cookie and browser.key[3:11] not in cookie
    assert browser.get("/families").status_code == 200
    assert browser.client.get("/v1/families").status_code == 401, "the API accepts only keys"
    changed = Browser(TestClient(filled.client.app, base_url=BASE, follow_redirects=False))
    name, value = next(iter(browser.client.cookies.items()))
    changed.client.cookies.set(name, value[:-2] + ("AA" if value[-2:] != "AA" else "BB"))
    assert changed.get("/families").status_code == 303
    secure = filled.browser(None, base="https://watch.example")
    secure.key = filled.keys["read"]
    cookie = secure.sign_in().headers["set-cookie"]
    assert cookie.startswith("__Host-") and "Secure" in cookie and "Domain" not in cookie


@pytest.mark.parametrize("as_json", [True, False])
def test_no_key_is_logged(filled: Installation, monkeypatch, capfd, as_json: bool) -> None:
    """Not even if something fails while a key from a form, a header or a cookie is checked."""
    configure_logging(filled.settings.model_copy(update={"log_json": as_json}))
    browser, signed_in = filled.browser(None), filled.browser("read")
    browser.token = token_of(browser.page("/login"))
    key = filled.keys["admin"]

    def broken(*_: object) -> None:
        raise RuntimeError("the database is on fire")

    monkeypatch.setattr(logic, "authenticate", broken)
    assert browser.send("/login", {"key": key}).status_code == 500
    assert filled.client.get("/v1/families", headers={"authorization": f"Bearer {key}"}).status_code == 500
    monkeypatch.setattr(logic, "returning", broken)
    assert signed_in.get("/families").status_code == 500
    log = capfd.readouterr().err
    assert log.count("the database is on fire") >= 3
    assert key not in log and next(iter(signed_in.client.cookies.values())) not in log


def test_signing_out_or_an_expired_key_ends_the_session(filled: Installation) -> None:
    browser = filled.browser("read")
    assert browser.send("/logout").headers["location"] == "/login"
    assert browser.get("/families").status_code == 303
    key_id, key = filled.new_key("read")
    browser.key = key
    browser.sign_in()
    with filled.database.write() as session:
        session.get_one(ApiKey, key_id).expires_at = utcnow() - timedelta(seconds=1)
    assert browser.get("/families").status_code == 303
    with filled.database.read() as session:
        entries = session.scalars(select(AuditEntry).where(AuditEntry.actor == key_id, AuditEntry.path == "/login"))
        assert len(entries.all()) == 1, "the audit log records who signed in"


def test_a_forged_form_changes_nothing(filled: Installation) -> None:
    writer, other = filled.browser("write"), filled.browser("write")
    for token in ("", "guessed", other.token):
        refused = writer.send(f"{HERE}/features/F2/watch", {"watched": "yes"}, token=token)
        assert refused.status_code == 403 and "was not sent from a page of this service" in html.unescape(refused.text)
    assert writer.client.post("/login", data={"key": writer.key}).status_code == 403
    with filled.database.read() as session:
        assert not features.get(session, families.get(session, FAMILY), "F2").watched
    assert writer.send(f"{HERE}/features/F2", {"label": "a\0b"}).status_code == 422
    unread = writer.client.post(f"{HERE}/features/F2", content=b"csrf=\xff\xfe", headers={"accept": "text/html"})
    assert unread.status_code == 422


def test_a_reader_cannot_write(filled: Installation) -> None:
    reader = filled.browser("read")
    for path in (
        f"{HERE}/features/F2/watch", f"{HERE}/features/F2", f"{HERE}/features/F2/dependencies",
        "/runs/run_failed/retry", "/alerts/alt_0/ack", "/alert-rules", "/webhooks", "/keys",
    ):  # fmt: skip
        assert reader.send(path, {"watched": "yes", "label": "x"}).status_code == 403, path
    assert filled.browser("write").send("/keys", {"name": "mine", "scope": "admin"}).status_code == 403


def test_watching_and_labelling_a_feature(filled: Installation) -> None:
    writer = filled.browser("write")
    part = writer.send(f"{HERE}/features/F3/watch", {"watched": "yes"}, **{"hx-request": "true"})
    assert 'aria-pressed="true"' in part.text and "<html" not in part.text
    whole = writer.send(f"{HERE}/features/F3", {"label": " if ", "tags": "Safety, refusal"})
    assert whole.headers["location"] == f"{HERE}/features/F3"
    with filled.database.read() as session:
        row = features.get(session, families.get(session, FAMILY), "F3")
        assert (row.watched, row.label, row.tags) == (True, "if", ["refusal", "safety"])
    wrong = writer.send(f"{HERE}/features/F3", {"label": "if", "tags": "no!"})
    assert wrong.status_code == 422 and "tags.0" in wrong.text


def test_alerts_rules_and_runs(filled: Installation) -> None:
    writer = filled.browser("write")
    assert writer.send("/alerts/alt_1/ack").headers["location"] == "/alerts"
    assert writer.send("/alerts/alt_2/mute", {"hours": "24", "from": "alert"}).headers["location"] == "/alerts/alt_2"
    filters = {"state": "all", "family": FAMILY}
    assert writer.send("/alerts/alt_2/reopen", filters).headers["location"] == f"/alerts?state=all&family={FAMILY}"
    assert writer.send("/alerts/alt_2/mute", {"hours": "24"}).headers["location"] == "/alerts"
    assert writer.send("/alerts/alt_3/resolve").status_code == 303
    assert writer.send("/alerts/alt_3/resolve").status_code == 409, "already resolved"
    assert writer.send("/runs/run_queued/cancel").status_code == 303
    assert writer.send("/runs/run_cancelled/retry").status_code == 303
    for fields in (
        {"kind": "watched"}, {"kind": "tag", "tag": "safety"}, {"kind": "feature", "feature": "F4"},
        {"kind": "rewired", "feature": ""}, {"kind": "status_count", "status": "absent", "at_least": "5"},
        {"kind": "signature", "signature": "concept-0"}, {"kind": "quality", "max_fvu_ratio": "1.5"},
        {"kind": "run_failed", "days": "7"}, {"kind": "absence", "days": "7", "tag": ""},
    ):  # fmt: skip
        created = writer.send("/alert-rules", {"name": f"by page {fields['kind']}", "family": FAMILY, **fields})
        assert created.status_code == 303, created.text
    assert writer.send("/alert-rules", {"name": "x", "kind": "absence", "days": "soon"}).status_code == 422
    unknown = {"name": "x", "family": FAMILY, "kind": "feature", "feature": "F999999"}
    assert "has no feature F999999" in writer.send("/alert-rules", unknown).text
    with filled.database.read() as session:
        states = [session.get_one(Alert, f"alt_{number}").state for number in range(4)]
        assert states == ["open", "acknowledged", "muted", "resolved"]
        assert [session.get_one(Run, f"run_{name}").state for name in ("queued", "cancelled")] == [
            "cancelled",
            "queued",
        ]
        rules = session.scalars(select(AlertRule).where(AlertRule.name.startswith("by page"))).all()
    assert len(rules) == 9
    assert writer.send(f"/alert-rules/{rules[0].id}", {"do": "disable"}).status_code == 303
    assert writer.send(f"/alert-rules/{rules[1].id}", {"do": "delete"}).status_code == 303
    with filled.database.read() as session:
        assert not session.get_one(AlertRule, rules[0].id).enabled
        assert session.get(AlertRule, rules[1].id) is None


def test_webhooks(filled: Installation) -> None:
    writer = filled.browser("write")
    created = writer.send("/webhooks", {"url": "https://hooks.example/x", "event": ["alert.raised", "run.failed"]})
    assert created.status_code == 201 and created.headers["cache-control"] == "no-store" and "whsec_" in created.text
    with filled.database.read() as session:
        webhook = session.scalars(select(Webhook).where(Webhook.url == "https://hooks.example/…")).one()
        assert webhook.event_types == ["alert.raised", "run.failed"]
    there = f"/webhooks/{webhook.id}"
    assert "whsec_" not in writer.page(there)
    assert writer.send(there, {"do": "test"}).headers["location"] == there
    assert "webhook.test" in writer.page(there)
    other = writer.send(there, {"do": "rotate"})
    assert (
        "whsec_" in other.text
        and "Old secret valid until" in other.text
        and other.headers["cache-control"] == "no-store"
    )
    assert writer.send(there, {"do": "disable"}).status_code == 303
    assert "disabled by a user" in writer.page(there)
    assert writer.send(there, {"do": "test"}).status_code == 409
    assert writer.send(there, {"do": "enable"}).status_code == 303
    delivery = re.search(r"deliveries/(\w+)/redeliver", writer.page("/webhooks/" + _first(filled)))
    assert delivery
    again = writer.send(f"/webhooks/{_first(filled)}/deliveries/{delivery[1]}/redeliver")
    assert again.status_code == 303
    assert writer.send(there, {"do": "delete"}).headers["location"] == "/webhooks"
    assert writer.send("/webhooks", {"url": "ftp://x"}).status_code == 422


def _first(filled: Installation) -> str:
    with filled.database.read() as session:
        return session.scalars(select(Webhook.id).where(Webhook.url.startswith("https://ci."))).one()


def test_keys_are_created_shown_once_and_revoked(filled: Installation) -> None:
    admin = filled.browser("admin")
    created = admin.send("/keys", {"name": "<b>ci</b>", "scope": "write", "days": "30"})
    key = re.search(r"fw_\w{46}", created.text)
    assert created.status_code == 201 and key and created.headers["cache-control"] == "no-store"
    assert "<b>ci</b>" not in created.text
    assert filled.client.get("/v1/families", headers={"authorization": f"Bearer {key[0]}"}).status_code == 200
    assert key[0] not in admin.page("/keys")
    for days in ("0", "-1", "soon", "nan", "inf"):
        assert admin.send("/keys", {"name": "x", "scope": "read", "days": days}).status_code == 422, days
    with filled.database.read() as session:
        row = session.scalars(select(ApiKey).where(ApiKey.name == "<b>ci</b>")).one()
    assert admin.send(f"/keys/{row.id}/revoke").status_code == 303
    assert filled.client.get("/v1/families", headers={"authorization": f"Bearer {key[0]}"}).status_code == 401


def test_the_embedded_service_needs_no_key_and_rejects_cross_site_forms(tmp_path, sqlite_template) -> None:
    (tmp_path / "featurewatch.db").write_bytes(sqlite_template.read_bytes())
    settings = Settings(data_dir=tmp_path, require_keys=False, log_level="ERROR")
    with TestClient(create_app(settings), base_url=BASE, follow_redirects=False) as client:
        browser = Browser(client)
        home = browser.page("/families")
        assert "featurewatch family create" in home and "featurewatch demo --keep" in home
        assert "waiting" not in home, "no count without alerts"
        assert "Sign out" not in home and 'href="/keys"' in home
        assert client.get("/").headers["location"] == "/families"
        browser.token = token_of(browser.page("/keys"))
        for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
            assert browser.send("/keys", {"name": "x", "scope": "admin"}, **headers).status_code == 403
        assert browser.send("/keys", {"name": "x", "scope": "admin"}, token="").status_code == 403
        assert browser.send("/keys", {"name": "x", "scope": "read"}, origin=BASE).status_code == 201
        for path in ("/runs", "/alerts", "/webhooks"):
            assert "featurewatch " in browser.page(path), f"{path} shows what to do next"


def test_a_server_without_its_secret_key_says_so() -> None:
    visits = Visits(Settings(database_url="postgresql+psycopg://nobody@localhost/none"))
    with pytest.raises(UnavailableError, match="FEATUREWATCH_SECRET_KEY"):
        visits.seal(begin())
    assert visits.open("AAAA") is None
