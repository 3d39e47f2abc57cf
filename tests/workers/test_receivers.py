"""Receivers that fail, hang, mislead or break off: what the sweeps make of them, and what the delivery log says."""

import threading
from datetime import timedelta

import pytest
from sqlalchemy import select

from featurewatch.service.alerts import logic as alerts
from featurewatch.service.kit import clock
from featurewatch.service.models import Alert, Delivery, Event, Webhook
from featurewatch.service.webhooks import logic
from featurewatch.service.webhooks.schemas import WebhookUpdate
from featurewatch.workers.sweeps import SENDERS_EACH, Sweeper
from tests.workers.conftest import wait_for
from tests.workers.receivers import Receiver, emit, log_of, name_server, only, rude

QUARTER = timedelta(minutes=15)


@pytest.fixture
def sweep(settings, database):
    """One sweep of a process that has just started: what is done once a minute is done too."""
    return lambda: Sweeper(settings, database, publish=None).sweep()


@pytest.fixture
def inside(receiver):
    """A receiver at an address that webhooks may not reach, on the port of the one that they may."""
    inside = Receiver("127.0.0.2", receiver.server.server_port)
    yield inside
    inside.close()


def test_one_that_fails_for_a_day_gets_everything_after_it(receiver, register, sweep, database, time_machine):
    webhook_id, secret = register(receiver.url)
    receiver.secrets = [secret]
    began = clock.utcnow()
    receiver.answer = lambda: 500 if clock.utcnow() - began < timedelta(days=1) else 204
    events = [emit(database, "first")]
    for quarter in range(40 * 4):
        if quarter == 12 * 4:
            events.append(emit(database, "in the middle"))
            assert only(database, Webhook).failing_since is not None
        sweep()
        time_machine(QUARTER)
    with database.read() as session:
        first, second = session.scalars(select(Delivery).order_by(Delivery.created_at))
        assert session.scalars(select(Alert)).all() == []
    webhook = only(database, Webhook)
    assert (webhook.id, webhook.enabled, webhook.failing_since, webhook.paused_at) == (webhook_id, True, None, None)
    assert {first.state, second.state} == {"delivered"}
    # 0, 5 s, 5 min, 30 min, 2 h, 5 h and 10 h after one another, and 14 h later it is well again.
    assert [entry["status"] for entry in first.log] == [500] * 7 + [204]
    assert [entry["error"] for entry in first.log] == ["status 500"] * 7 + [None]
    assert timedelta(hours=24) < first.delivered_at - began < timedelta(hours=36)
    assert [entry["status"] for entry in second.log] == [500] * 6 + [204]
    assert set(receiver.ids()) == set(events)
    assert len({body for _, _, body in receiver.requests}) == 2, "each attempt had the same bytes"


def test_one_that_fails_for_days_is_paused_with_an_alert(receiver, register, sweep, settings, database, time_machine):
    webhook_id, _ = register(receiver.url)
    other = Receiver()
    register(other.url, event_types=["alert.raised", "alert.resolved"])
    receiver.answer = lambda: 500
    events = []
    for day in range(7):
        events.append(emit(database, f"day {day}"))
        for _ in range(4):
            sweep()
            time_machine(timedelta(hours=6))
    with database.read() as session:
        webhook = session.get_one(Webhook, webhook_id)
        (alert,) = session.scalars(select(Alert))
        states = {row.event_id: row.state for row in session.scalars(select(Delivery)) if row.webhook_id == webhook_id}
    assert not webhook.enabled
    assert webhook.paused_at - webhook.failing_since >= timedelta(days=settings.webhook_pause_days)
    assert (alert.kind, alert.state, alert.webhook_id, alert.rule_id) == ("webhook_paused", "open", webhook_id, None)
    assert f"webhook {webhook_id} (127.0.0.1) is paused: no delivery has succeeded since" in alert.summary
    assert "from=tests" not in f"{alert.summary}{alert.evidence}", "the rest of a URL is often a secret"
    assert len(other.requests) == 1, "told once, however often the sweep looks"
    attempts = len(receiver.requests)
    sweep()
    assert len(receiver.requests) == attempts
    assert states[events[0]] == "failed", "its schedule was over before the pause"
    assert {states[event] for event in events[2:]} == {"pending"}, "what came during the pause waits too"

    with database.write() as session:
        alerts.acknowledge(session, session.get_one(Alert, alert.id))
    sweep()
    assert only(database, Alert).state == "acknowledged"
    receiver.answer, receiver.requests = (lambda: 204), []
    with database.write() as session:
        logic.change(session, settings, session.get_one(Webhook, webhook_id), WebhookUpdate(enabled=True))
    sweep()
    assert set(events[2:]) < set(receiver.ids())
    sweep()
    assert only(database, Alert).state == "resolved"
    types = [type_ for _, headers, _ in other.requests for type_ in _types(database, headers["webhook-id"])]
    assert types == ["alert.raised", "alert.resolved"]
    other.close()


def test_a_pause_that_somebody_resolved_is_no_alert_again(receiver, register, sweep, database, time_machine):
    register(receiver.url)
    receiver.answer = lambda: 500
    for _ in range(2):
        emit(database, str(clock.utcnow()))
        sweep()
        time_machine(timedelta(days=6))
    with database.write() as session:
        alerts.resolve(session, session.scalars(select(Alert)).one())
    sweep()
    assert only(database, Alert).state == "resolved"


def test_one_success_in_days_of_failure_keeps_it_going(receiver, register, sweep, database, time_machine):
    register(receiver.url)
    for answer in (500, 204, 500, 500):
        receiver.answer = lambda answer=answer: answer
        emit(database, str(clock.utcnow()))
        sweep()
        time_machine(timedelta(days=3))
    webhook = only(database, Webhook)
    assert (webhook.enabled, webhook.paused_at) == (True, None)


def test_ones_that_hang_do_not_hold_up_the_others(receiver, register, settings, database):
    """They hold their connections until the healthy one has everything, which it could not have after them."""
    released = threading.Event()
    held = []

    def hang(_connection):
        held.append(1)
        released.wait(60)

    with rude(hang) as url:
        register(url)
        for number in range(20):
            emit(database, str(number))
        register(receiver.url)
        events = {emit(database, f"for both {number}") for number in range(5)}
        patient = settings.model_copy(update={"webhook_seconds": 30.0})
        sweeping = threading.Thread(target=Sweeper(patient, database, publish=None).deliver)
        sweeping.start()
        try:
            wait_for(lambda: set(receiver.ids()) == events)
            assert len(held) == SENDERS_EACH
        finally:
            released.set()
            sweeping.join()


def drip(connection):
    """A byte now and then, each before any timeout of a single read."""
    for byte in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200:
        connection.sendall(bytes([byte]))
        threading.Event().wait(0.02)


@pytest.mark.parametrize("behave", [lambda connection: connection.recv(1), drip], ids=["silent", "dripping"])
def test_one_that_hangs_is_left_in_time(register, settings, database, behave):
    hasty = settings.model_copy(update={"webhook_seconds": 0.5})
    with rude(behave) as url:
        webhook_id, _ = register(url)
        emit(database)
        Sweeper(hasty, database, publish=None).deliver()
    ((status, error),) = log_of(database, webhook_id)
    assert status is None
    assert error.startswith("ReadTimeout")
    delivery = only(database)
    assert (delivery.state, delivery.attempts) == ("pending", 1)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_one_that_redirects_to_loopback(receiver, inside, register, sweep, database, status):
    webhook_id, _ = register(receiver.url)
    emit(database)
    receiver.answers, receiver.headers = [status], {"Location": inside.url}
    sweep()
    assert inside.requests == []
    assert log_of(database, webhook_id) == [(status, f"status {status}")]
    assert only(database).state == "pending"


def test_a_name_that_leads_inside_from_the_second_look_on(receiver, inside, register, sweep, database, time_machine):
    """DNS rebinding: what the name led to when it was checked is not what it leads to when it is connected."""
    register(f"http://rebind.test:{receiver.server.server_port}/hook")
    here, there = ["127.0.0.1"], ["127.0.0.2"]
    with name_server([here, there, here]) as asked:
        events = [emit(database, "1")]
        sweep()
        assert asked == ["rebind.test"], "looked up once: the connection goes to the address that was checked"
        assert receiver.ids() == events
        events.append(emit(database, "2"))
        sweep()
        time_machine(timedelta(seconds=10))
        sweep()
    assert receiver.ids() == events
    assert inside.requests == []
    with database.read() as session:
        logs = [row.log for row in session.scalars(select(Delivery).order_by(Delivery.created_at))]
    refused = "AddressRefusedError: rebind.test resolves to an address that is not allowed"
    assert [[(entry["status"], entry["error"]) for entry in log] for log in logs] == [
        [(204, None)],
        [(None, refused), (204, None)],
    ]


def test_a_name_with_an_address_inside_among_others(receiver, inside, register, sweep, database):
    webhook_id, _ = register(f"http://rebind.test:{receiver.server.server_port}/hook")
    with name_server([["127.0.0.2", "127.0.0.1"]]):
        emit(database)
        sweep()
    assert (len(receiver.requests), inside.requests) == (1, [])
    assert log_of(database, webhook_id) == [(204, None)]


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"", "RemoteProtocolError: Server disconnected without sending a response"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nthank yo", "RemoteProtocolError: peer closed connection"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nthan", "RemoteProtocolError"),
        (b"\xff\xfe no HTTP at all\r\n\r\n", "RemoteProtocolError"),
    ],
    ids=["at once", "in its headers", "in its body", "in a chunk", "with nonsense"],
)
def test_one_that_closes_in_the_middle_of_its_answer(
    receiver, register, sweep, settings, database, time_machine, sent, error
):
    with rude(lambda connection: connection.sendall(sent)) as url:
        webhook_id, _ = register(url)
        event = emit(database)
        sweep()
    ((status, told),) = log_of(database, webhook_id)
    assert status is None
    assert told.startswith(error)
    with database.write() as session:
        webhook = session.get_one(Webhook, webhook_id)
        logic.change(session, settings, webhook, WebhookUpdate(url=receiver.url))
    time_machine(timedelta(seconds=10))
    sweep()
    assert receiver.ids() == [event], "tried again under the same id"


def _types(database, event_id):
    with database.read() as session:
        return session.scalars(select(Event.type).where(Event.id == event_id)).all()
