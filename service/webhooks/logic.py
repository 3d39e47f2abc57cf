"""Events, and their way to the webhooks (Standard Webhooks 1.0).

An event is stored in the transaction that it tells of, with one delivery for each webhook that wants it. A sweep
claims due deliveries, sends them outside of any transaction, and writes down what came of it. A sender that dies in
between leaves a delivery that becomes due again: at least once, under one stable `webhook-id`.
"""

import base64
import hashlib
import json
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from standardwebhooks import Webhook as Signer

from service.config import Settings
from service.kit import clock, outbound
from service.kit.crypto import SecretBox, SecretKeyError
from service.kit.ids import new_id
from service.kit.problems import ConflictError, NotFoundError, UnavailableError, UnprocessableError
from service.models import Delivery, Event, Webhook
from service.webhooks import queries
from service.webhooks.schemas import SECRET_PREFIX, TEST_EVENT, WebhookCreate, WebhookUpdate, literal_address

RETRY_AFTER = tuple(
    timedelta(**step)
    for step in (
        {"seconds": 5},
        {"minutes": 5},
        {"minutes": 30},
        {"hours": 2},
        {"hours": 5},
        {"hours": 10},
        {"hours": 14},
        {"hours": 20},
        {"hours": 24},
    )
)
"""Waits between the attempts; after the last one the delivery is given up."""

JITTER = 0.1
RESERVED = timedelta(seconds=60)
"""Longer than an attempt can take; a sender that dies gives its deliveries back after it."""

LOG_ENTRIES = 30
LOG_CHARACTERS = 1000
_random = secrets.SystemRandom()


@dataclass(frozen=True)
class Parcel:
    """One claimed delivery: all that is needed to send it without a database."""

    delivery_id: str
    webhook_id: str
    reserved_until: datetime
    url: str
    sealed_secret: bytes
    event_id: str
    body: bytes


@dataclass(frozen=True)
class Outcome:
    """What came of one attempt. `status` is None where there was no answer."""

    status: int | None
    error: str | None
    seconds: float
    response: str


def emit(session: Session, *, type: str, family_id: str | None, data: dict[str, Any], key: str) -> Event:
    """Store an event and its deliveries in the caller's transaction.

    `key` says what happened: the event's id is a digest of type and key, and a second emit of the same is no second
    event. Numbers that JSON lacks (NaN, infinities) become null.
    """
    event_id = "msg_" + hashlib.sha256(f"{type}\0{key}".encode()).hexdigest()[:32]
    known = session.get(Event, event_id)
    if known is not None:
        return known
    event = Event(id=event_id, type=type, family_id=family_id, data=plain(data), created_at=clock.utcnow())
    try:
        with session.begin_nested():
            session.add(event)
    except IntegrityError:  # another transaction told the same in this moment
        return session.get_one(Event, event_id)
    for webhook in queries.enabled(session):
        if not webhook.event_types or type in webhook.event_types:
            session.add(_delivery(webhook, event))
    session.flush()
    return event


def create(session: Session, settings: Settings, body: WebhookCreate) -> tuple[Webhook, str]:
    """A new webhook and its secret, which is stored encrypted and never shown again."""
    _check_literal(settings, body.url)
    secret = body.secret or SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()
    webhook_id = new_id("whk")
    webhook = Webhook(
        id=webhook_id,
        url=body.url,
        event_types=[str(each) for each in body.event_types],
        secret=_box(settings).encrypt(secret.encode(), context=webhook_id),
        enabled=True,
    )
    session.add(webhook)
    session.flush()
    return webhook, secret


def get(session: Session, webhook_id: str) -> Webhook:
    """A webhook; NotFoundError."""
    webhook = session.get(Webhook, webhook_id)
    if webhook is None:
        raise NotFoundError(f"There is no webhook {webhook_id}.", code="unknown-webhook")
    return webhook


def change(session: Session, settings: Settings, webhook: Webhook, body: WebhookUpdate) -> None:
    """Change what the body names. Enabling forgets why it was disabled."""
    if body.url is not None:
        _check_literal(settings, body.url)
        webhook.url = body.url
    if body.event_types is not None:
        webhook.event_types = [str(each) for each in body.event_types]
    if body.enabled is not None:
        webhook.enabled = body.enabled
        webhook.disabled_reason = None if body.enabled else "disabled by a user"
    session.flush()


def test(session: Session, webhook: Webhook) -> tuple[Delivery, Event]:
    """Queue a test event to this webhook alone."""
    _require_enabled(webhook)
    event = Event(
        id=f"msg_{secrets.token_hex(16)}",
        type=TEST_EVENT,
        family_id=None,
        data={"webhook": webhook.id, "message": "A test, asked for over the API."},
        created_at=clock.utcnow(),
    )
    session.add(event)
    session.flush()
    delivery = _delivery(webhook, event)
    session.add(delivery)
    session.flush()
    return delivery, event


def get_delivery(session: Session, webhook: Webhook, delivery_id: str) -> Delivery:
    """A delivery of a webhook; NotFoundError."""
    delivery = queries.delivery(session, webhook.id, delivery_id)
    if delivery is None:
        raise NotFoundError(f"Webhook {webhook.id} has no delivery {delivery_id}.", code="unknown-delivery")
    return delivery


def redeliver(session: Session, webhook: Webhook, delivery_id: str) -> Delivery:
    """Send a delivery again, at once and with the whole schedule before it; its log goes on."""
    _require_enabled(webhook)
    delivery = get_delivery(session, webhook, delivery_id)
    delivery.state, delivery.attempts, delivery.next_attempt_at = "pending", 0, clock.utcnow()
    delivery.delivered_at = None
    session.flush()
    return delivery


def claim_due(session: Session, *, limit: int) -> list[Parcel]:
    """Reserve deliveries that are due. The caller commits before it sends them."""
    now = clock.utcnow()
    until = now + RESERVED
    parcels = []
    for delivery, webhook, event in queries.due(session, now=now, limit=limit):
        if queries.reserve(session, delivery.id, now=now, until=until):
            parcels.append(
                Parcel(delivery.id, webhook.id, until, webhook.url, webhook.secret, event.id, payload(event))
            )
    return parcels


def payload(event: Event) -> bytes:
    """The body of every delivery of an event: made from the row alone, so a retry sends the same bytes."""
    document = {"type": event.type, "timestamp": event.created_at.isoformat(), "data": event.data}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()


def send(parcel: Parcel, box: SecretBox, allow: Sequence[outbound.Network]) -> Outcome:
    """Sign and POST; never raises for what a receiver, the network or a changed key can do."""
    began = datetime.now(UTC)
    try:
        secret = box.decrypt(parcel.sealed_secret, context=parcel.webhook_id).decode()
        now = clock.utcnow()  # UTC: the library's sign() takes the digits and drops the zone
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "featurewatch-webhooks/1",
            "webhook-id": parcel.event_id,
            "webhook-timestamp": str(math.floor(now.timestamp())),
            "webhook-signature": Signer(secret).sign(parcel.event_id, now, parcel.body.decode()),
        }
        reply = outbound.post(parcel.url, body=parcel.body, headers=headers, allow=tuple(allow))
    except (httpx2.HTTPError, httpx2.InvalidURL, SecretKeyError) as error:
        seconds = (datetime.now(UTC) - began).total_seconds()
        return Outcome(None, f"{type(error).__name__}: {error}"[:LOG_CHARACTERS], seconds, "")
    # Postgres text cannot hold a NUL.
    text = reply.body.decode("utf-8", errors="replace").replace("\0", "\ufffd")[:LOG_CHARACTERS]
    fault = None if 200 <= reply.status < 300 else f"status {reply.status}"
    return Outcome(reply.status, fault, reply.seconds, text)


def record(session: Session, parcel: Parcel, outcome: Outcome) -> bool:
    """Write an attempt into the log and say what is next. False: the reservation was over, nothing was written."""
    delivery = session.get(Delivery, parcel.delivery_id, populate_existing=True)
    if delivery is None:
        return False
    now = clock.utcnow()
    entry = {
        "at": now.isoformat(),
        "status": outcome.status,
        "error": outcome.error,
        "seconds": round(outcome.seconds, 3),
        "response": outcome.response,
    }
    attempts = delivery.attempts + 1
    values: dict[str, Any] = {"attempts": attempts, "log": [*delivery.log, entry][-LOG_ENTRIES:]}
    if outcome.error is None:
        values |= {"state": "delivered", "delivered_at": now, "next_attempt_at": None}
    elif outcome.status == 410 or attempts > len(RETRY_AFTER):
        values |= {"state": "failed", "next_attempt_at": None}
    else:
        values["next_attempt_at"] = now + RETRY_AFTER[attempts - 1] * _random.uniform(1, 1 + JITTER)
    if not queries.settle(session, delivery.id, reserved_until=parcel.reserved_until, **values):
        return False
    if outcome.status == 410:
        queries.disable(session, parcel.webhook_id, "the receiver answered 410 Gone")
    return True


def _delivery(webhook: Webhook, event: Event) -> Delivery:
    return Delivery(webhook_id=webhook.id, event_id=event.id, next_attempt_at=event.created_at, log=[])


def _require_enabled(webhook: Webhook) -> None:
    if not webhook.enabled:
        raise ConflictError(f"Webhook {webhook.id} is disabled; enable it first.", code="webhook-disabled")


def _check_literal(settings: Settings, url: str) -> None:
    """Refuse early what the guard of the connection would refuse each time. Names are only known when connecting."""
    address = literal_address(url)
    if address is not None and not outbound.is_allowed(address, outbound.parse_networks(settings.webhook_allow)):
        raise UnprocessableError(
            f"Webhooks may not reach {address}; an operator can allow its network with FEATUREWATCH_WEBHOOK_ALLOW.",
            code="address-not-allowed",
        )


def _box(settings: Settings) -> SecretBox:
    try:
        return SecretBox(settings)
    except SecretKeyError as error:
        raise UnavailableError(str(error), code="secret-key-missing") from error


def plain(value: Any) -> Any:
    """A value as JSON can hold it: numpy scalars become Python's, and numbers that JSON lacks become null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if not isinstance(value, str | int | float | None):
        value = value.item() if hasattr(value, "item") else str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
