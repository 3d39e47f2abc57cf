"""Webhooks from the outbox to a real receiver: signatures, retries, reservations, and what must not be reached."""

import json
import threading
from contextlib import contextmanager
from datetime import datetime, timedelta
from email.utils import format_datetime

import pytest
from sqlalchemy import select
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from featurewatch.service.kit import clock
from featurewatch.service.kit.crypto import SecretKeyError
from featurewatch.service.kit.logs import configure_logging
from featurewatch.service.models import Delivery, Event, Webhook
from featurewatch.service.webhooks import logic, sending
from featurewatch.service.webhooks.schemas import RotateBody
from featurewatch.workers.sweeps import Sweeper
from tests.workers.receivers import Receiver, emit, only


def test_a_delivery_is_signed_as_the_standard_says(receiver, register, sweeper, database):
    _, secret = register(receiver.url)
    event_id = emit(database, ratio=float("nan"), nested=[{"x": float("inf")}, 0.1])
    assert sweeper.deliver() == 1
    (path, headers, body), *rest = receiver.requests
    assert not rest
    assert path == "/hook?from=tests"
    assert headers["webhook-id"] == event_id
    document = Verifier(secret).verify(body, headers)
    assert document["type"] == "checkpoint.judged"
    assert document["data"] == {"ratio": None, "nested": [{"x": None}, 0.1]}
    assert abs(clock.utcnow() - datetime.fromisoformat(document["timestamp"])) < timedelta(minutes=1)
    with pytest.raises(WebhookVerificationError):
        Verifier(secret).verify(body.replace(b"0.1", b"0.2"), headers)
    delivery = only(database)
    assert (delivery.state, delivery.attempts, delivery.next_attempt_at) == ("delivered", 1, None)
    assert sweeper.deliver() == 0


@pytest.mark.parametrize("log_level", ["INFO", "DEBUG"])
def test_what_a_url_keeps_secret_is_in_no_log(receiver, register, settings, database, capfd, log_level):
    """Receivers repeat the path in their answers, clients the whole URL in their lines."""
    configure_logging(settings.model_copy(update={"log_level": log_level}))
    base = receiver.url.partition("/hook")[0]
    receiver.body = (
        b"Cannot POST /services/T0/a%20token-of-slack?key=long+secret+word (a token-of-slack, long secret word)"
    )
    register(f"{base}/services/T0/a%20token-of-slack?key=long+secret+word")
    register("http://127.0.0.1:9/services/T0/a%20token-of-slack")
    emit(database)
    receiver.answers = [404]
    assert Sweeper(settings, database, publish=None).deliver() == 2
    with database.read() as session:
        logs = json.dumps([delivery.log for delivery in session.scalars(select(Delivery))], ensure_ascii=False)
    assert "Cannot POST …" in logs and "status 404" in logs and "ConnectError" in logs
    for text in (logs, capfd.readouterr().err):
        assert "token-of-slack" not in text and "secret" not in text and "services" not in text
    configure_logging(settings)


def test_an_event_is_told_once_and_only_to_those_who_want_it(receiver, register, sweeper, database):
    wanted, _ = register(receiver.url, event_types=["run.failed", "checkpoint.judged"])
    register(receiver.url, event_types=["alert.raised"])
    assert emit(database, key="a") == emit(database, key="a") != emit(database, key="b")
    assert sweeper.deliver() == 2
    with database.read() as session:
        assert set(session.scalars(select(Delivery.webhook_id))) == {wanted}


def test_retries_send_the_same_bytes_along_the_whole_schedule(receiver, register, sweeper, database, time_machine):
    register(receiver.url)
    emit(database)
    receiver.answers = [500] * 20
    waits = [5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400]
    assert sweeper.deliver() == 1
    for wait in waits:
        left = (only(database).next_attempt_at - clock.utcnow()).total_seconds()
        assert wait - 2 <= left <= wait * 1.1, "the wait of the schedule, up to a tenth longer"
        near = min(left / 2, 60)
        time_machine(timedelta(seconds=left - near))
        assert sweeper.deliver() == 0, "not early"
        time_machine(timedelta(seconds=near))
        assert sweeper.deliver() == 1
    delivery = only(database)
    assert (delivery.state, delivery.attempts, delivery.next_attempt_at) == ("failed", 10, None)
    assert len({body for _, _, body in receiver.requests}) == 1
    assert len({headers["webhook-id"] for _, headers, _ in receiver.requests}) == 1
    assert len({headers["webhook-timestamp"] for _, headers, _ in receiver.requests}) > 5, "the attempt's own time"
    entry = delivery.log[0]
    assert (entry["status"], entry["error"], len(entry["response"])) == (500, "status 500", sending.LOG_CHARACTERS)


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [("120", 120), ("0", 5), ("-7", 5), ("soon", 5), ("nan", 5), ("1e9", 86400), ("1e999", 86400), ("1" * 400, 86400)],
)
def test_retry_after_in_seconds(receiver, register, sweeper, database, asked, seconds):
    register(receiver.url)
    emit(database)
    receiver.answers, receiver.headers = [503], {"Retry-After": asked}
    began = clock.utcnow()
    sweeper.deliver()
    waits = (only(database).next_attempt_at - began).total_seconds()
    assert seconds <= waits < seconds + 30, "what the receiver asked for, never less than the schedule, a day at most"


@pytest.mark.parametrize(("hours", "seconds"), [(1, 3600), (-1, 5), (1000, 86400)])
def test_retry_after_as_a_date(receiver, register, sweeper, database, time_machine, hours, seconds):
    time_machine(timedelta(days=400))
    register(receiver.url)
    emit(database)
    at = clock.utcnow() + timedelta(hours=hours, seconds=1)  # a date has no fractions of a second
    receiver.answers, receiver.headers = [429], {"Retry-After": format_datetime(at, usegmt=True)}
    began = clock.utcnow()
    sweeper.deliver()
    waits = (only(database).next_attempt_at - began).total_seconds()
    assert seconds - 1 <= waits < seconds + 30


def test_a_rotated_secret_signs_beside_the_old_one_for_a_time(
    receiver, register, settings, sweeper, database, time_machine
):
    webhook_id, old = register(receiver.url)

    def rotate(**body):
        with database.write() as session:
            return logic.rotate(session, settings, logic.get(session, webhook_id), RotateBody(**body))

    def delivered(key, *secrets):
        receiver.secrets = list(secrets)
        emit(database, key)
        sweeper.deliver()
        return len(receiver.requests[-1][1]["webhook-signature"].split())

    def rejected(secret):
        _, headers, body = receiver.requests[-1]
        with pytest.raises(WebhookVerificationError):
            Verifier(secret).verify(body, headers)

    new = rotate(hours=2)
    assert delivered("a", old, new) == 2, "whichever of the two a receiver has"
    time_machine(timedelta(hours=2))
    assert delivered("b", new) == 1
    rejected(old)
    sweeper.tidy()
    assert only(database, Webhook).old_secret is None, "forgotten for good"
    last = rotate(hours=0)
    assert delivered("c", last) == 1
    rejected(new)
    with database.read() as session:
        assert {row.state for row in session.scalars(select(Delivery))} == {"delivered"}, "no signature was refused"


def test_old_events_are_forgotten_unless_they_are_on_their_way(receiver, register, sweeper, database, time_machine):
    register(receiver.url)
    register(receiver.url, event_types=["run.failed"])
    gone, late = emit(database, "gone"), emit(database, "late", "run.failed")
    receiver.answer = lambda: 204 if receiver.ids()[-1] == gone else 500
    sweeper.deliver()
    time_machine(timedelta(days=31))
    young = emit(database, "young")
    sweeper.tidy()
    with database.read() as session:
        assert set(session.scalars(select(Event.id))) == {late, young}
        assert set(session.scalars(select(Delivery.event_id))) == {late, young}
    receiver.answer = lambda: 204
    sweeper.deliver()
    sweeper.tidy()
    with database.read() as session:
        assert set(session.scalars(select(Event.id))) == {young}


def test_a_chat_gets_one_line_of_text(receiver, register, sweeper, database):
    hostile = "<!channel> & @everyone\n*F7*"
    alert = {"family": "smol", "summary": f"v2: {hostile} absent", "rule_name": "watched"}
    register(receiver.url, format="slack")
    emit(database, "1", "alert.raised", alert=alert)
    sweeper.deliver()
    ((_, headers, body),) = receiver.requests
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {
        "text": "Alert: smol: v2: &lt;!channel&gt; &amp; @\u200beveryone *F7* absent (rule watched)"
    }


def test_gone_disables_the_webhook_and_gives_up_what_is_on_its_way(receiver, register, sweeper, database):
    register(receiver.url)
    emit(database, key="1")
    receiver.answers = [410]
    sweeper.deliver()
    webhook = only(database, Webhook)
    assert (webhook.enabled, webhook.disabled_reason) == (False, "the receiver responded with 410 Gone")
    emit(database, key="2")
    assert only(database).state == "failed", "nothing new for a disabled webhook"
    assert sweeper.deliver() == 0


def test_two_sweepers_do_not_send_twice(receiver, register, settings, database):
    register(receiver.url)
    for n in range(20):
        emit(database, key=str(n))
    sweepers = [Sweeper(settings, database, publish=None) for _ in range(3)]
    threads = [threading.Thread(target=each.deliver) for each in sweepers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = [headers["webhook-id"] for _, headers, _ in receiver.requests]
    assert len(ids) == len(set(ids)) == 20


def test_a_sender_that_died_leaves_a_delivery_that_comes_again(receiver, register, sweeper, database, time_machine):
    register(receiver.url)
    event_id = emit(database)
    with database.write() as session:
        (dead,) = sending.claim_due(session, limit=5)
    outcome = sending.send(dead, sweeper._secrets, sweeper.allow, 15.0)
    assert sweeper.deliver() == 0, "reserved"
    time_machine(sending.RESERVED + timedelta(seconds=1))
    assert sweeper.deliver() == 1
    assert [headers["webhook-id"] for _, headers, _ in receiver.requests] == [event_id] * 2
    with database.write() as session:
        assert not sending.record(session, dead, outcome, pause_after=timedelta()), "its reservation is over"
    assert len(only(database).log) == 1


def test_a_redirect_is_not_followed(receiver, register, sweeper, database):
    inside = Receiver("127.0.0.2")
    try:
        register(receiver.url)
        emit(database)
        receiver.answers, receiver.headers = [307], {"Location": inside.url}
        sweeper.deliver()
        assert not inside.requests
        assert only(database).log[0]["error"] == "status 307"
    finally:
        inside.close()


def test_an_environment_proxy_is_not_used(receiver, register, sweeper, database, monkeypatch):
    proxy = Receiver()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    try:
        register(receiver.url)
        emit(database)
        sweeper.deliver()
        assert len(receiver.requests) == 1
        assert not proxy.requests
    finally:
        proxy.close()


def test_a_name_that_leads_inside_is_refused_when_it_is_connected(receiver, register, settings, database):
    closed = Sweeper(settings.model_copy(update={"webhook_allow": ""}), database, publish=None)
    register(receiver.url.replace("127.0.0.1", "localhost"))
    emit(database)
    closed.deliver()
    assert not receiver.requests
    entry = only(database).log[0]
    assert entry["error"] == "AddressRefusedError: localhost resolves to an address that is not allowed"


def test_another_secret_key_is_told_in_the_log_and_loses_nothing(receiver, register, settings, database, time_machine):
    register(receiver.url)
    emit(database)
    other = settings.model_copy(update={"secret_key": type(settings.secret_key)("another key, also long enough")})
    Sweeper(other, database, publish=None).deliver()
    assert SecretKeyError.__name__ in only(database).log[0]["error"]
    assert not receiver.requests
    time_machine(timedelta(seconds=10))
    Sweeper(settings, database, publish=None).deliver()
    assert len(receiver.requests) == 1


def test_an_event_and_its_transaction_share_their_fate(receiver, register, database):
    register(receiver.url)

    @contextmanager
    def broken():
        with database.write() as session:
            yield session
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), broken() as session:
        logic.emit(session, type="run.failed", family_id=None, data={}, key="1")
    with database.read() as session:
        assert session.scalars(select(Delivery)).all() == []
