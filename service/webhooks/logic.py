"""Webhooks, and the events that they are told of.

An event is stored in the transaction that it tells of, with one delivery for each webhook that wants it; `sending` has
what comes after.
"""

import base64
import hashlib
import math
import secrets
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from featurewatch.service.config import Settings
from featurewatch.service.kit import clock, outbound
from featurewatch.service.kit.crypto import SecretBox, SecretKeyError
from featurewatch.service.kit.ids import new_id
from featurewatch.service.kit.pages import Page, Pager
from featurewatch.service.kit.problems import ConflictError, NotFoundError, UnavailableError, UnprocessableError
from featurewatch.service.models import Delivery, Event, Webhook
from featurewatch.service.models.webhook import url_context
from featurewatch.service.webhooks import queries
from featurewatch.service.webhooks.schemas import (
    SECRET_PREFIX,
    TEST_EVENT,
    DeliveryView,
    RotateBody,
    WebhookCreate,
    WebhookUpdate,
    WebhookView,
    delivery_view,
    literal_address,
    masked,
    view,
)


class Unsealed(NamedTuple):
    """An encrypted column of a webhook, opened."""

    webhook: Webhook
    column: str
    context: str
    plain: bytes


def emit(session: Session, *, type: str, family_id: str | None, data: dict[str, Any], key: str) -> Event:
    """Store an event and its deliveries in the caller's transaction.

    `key` says what happened: the event's id is a digest of type and key, and a second emit of the same is no second
    event. Numbers that JSON lacks (NaN, infinities) become null.
    """
    event_id = "msg_" + hashlib.sha256(f"{type}\0{key}".encode()).hexdigest()[:32]
    known = session.get(Event, event_id)
    if known is not None:
        return known
    event = Event(id=event_id, type=type, family_id=family_id, data=plain(data), created_at=clock.database_now(session))
    try:
        with session.begin_nested():
            session.add(event)
    except IntegrityError:  # another transaction told the same in this moment
        return session.get_one(Event, event_id)
    for webhook in queries.listening(session):
        if not webhook.event_types or type in webhook.event_types:
            session.add(_delivery(webhook, event))
    session.flush()
    return event


def create(session: Session, settings: Settings, body: WebhookCreate) -> tuple[Webhook, str]:
    """A new webhook and its secret. URL and secret are stored encrypted; neither is ever shown again."""
    _check_literal(settings, body.url)
    secret = body.secret or _new_secret()
    webhook_id, box = new_id("whk"), _box(session, settings)
    webhook = Webhook(
        id=webhook_id,
        url=masked(body.url),
        sealed_url=box.encrypt(body.url.encode(), context=url_context(webhook_id)),
        event_types=[str(each) for each in body.event_types],
        format=body.format,
        secret=box.encrypt(secret.encode(), context=webhook_id),
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


def page(session: Session, paging: Pager) -> Page[WebhookView]:
    """A page of webhooks, newest first."""
    found = queries.page(session, after=paging.after("webhooks"), limit=paging.limit)
    rows, cursor = paging.page(found, "webhooks", lambda row: (row.created_at, row.id))
    return Page(data=[view(row) for row in rows], next_cursor=cursor)


def deliveries(session: Session, paging: Pager, webhook: Webhook, state: str | None = None) -> Page[DeliveryView]:
    """A page of a webhook's deliveries, newest first."""
    order = f"deliveries {webhook.id} {state}"
    found = queries.deliveries_page(session, webhook.id, state=state, after=paging.after(order), limit=paging.limit)
    rows, cursor = paging.page(found, order, lambda row: (row[0].created_at, row[0].id))
    return Page(data=[delivery_view(*row) for row in rows], next_cursor=cursor)


def change(session: Session, settings: Settings, webhook: Webhook, body: WebhookUpdate) -> None:
    """Change what the body names. Enabling forgets why it was disabled or paused, and sends what waited."""
    if body.url is not None:
        _check_literal(settings, body.url)
        webhook.url = masked(body.url)
        sealed = _box(session, settings).encrypt(body.url.encode(), context=url_context(webhook.id))
        webhook.sealed_url = sealed
    if body.event_types is not None:
        webhook.event_types = [str(each) for each in body.event_types]
    if body.format is not None:
        webhook.format = body.format
    if body.enabled is not None:
        webhook.enabled = body.enabled
        webhook.failing_since = webhook.paused_at = None
        webhook.disabled_reason = None if body.enabled else "disabled by a user"
    session.flush()


def rotate(session: Session, settings: Settings, webhook: Webhook, body: RotateBody) -> str:
    """Give a webhook another secret, and return it. The one before signs beside it for so many hours."""
    secret = body.secret or _new_secret()
    webhook.old_secret, webhook.old_secret_until = None, None
    if body.hours > 0:
        webhook.old_secret = webhook.secret
        webhook.old_secret_until = clock.utcnow() + timedelta(hours=body.hours)
    webhook.secret = _box(session, settings).encrypt(secret.encode(), context=webhook.id)
    session.flush()
    return secret


def test(session: Session, webhook: Webhook) -> tuple[Delivery, Event]:
    """Queue a test event to this webhook alone."""
    _require_enabled(webhook)
    event = Event(
        id=f"msg_{secrets.token_hex(16)}",
        type=TEST_EVENT,
        family_id=None,
        data={"webhook": webhook.id, "message": "A test, asked for over the API."},
        created_at=clock.database_now(session),
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
    delivery.state, delivery.attempts, delivery.next_attempt_at = "pending", 0, clock.database_now(session)
    delivery.delivered_at = None
    session.flush()
    return delivery


def _delivery(webhook: Webhook, event: Event) -> Delivery:
    when = event.created_at
    return Delivery(webhook_id=webhook.id, event_id=event.id, created_at=when, next_attempt_at=when, log=[])


def _new_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


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


def unsealed(session: Session, box: SecretBox) -> list[Unsealed]:
    """Everything of webhooks that is encrypted, opened, and locked until the transaction ends.

    Raises SecretKeyError that names the webhook where something opens with none of the keys.
    """
    found = []
    for webhook in queries.locked(session):
        contexts = {"sealed_url": url_context(webhook.id), "secret": webhook.id, "old_secret": webhook.id}
        for column, context in contexts.items():
            sealed: bytes | None = getattr(webhook, column)
            if sealed is None:
                continue
            try:
                found.append(Unsealed(webhook, column, context, box.decrypt(sealed, context=context)))
            except SecretKeyError as error:
                raise SecretKeyError(f"webhook {webhook.id}: {error}, or delete the webhook") from error
    return found


def reseal(session: Session, box: SecretBox, parts: list[Unsealed]) -> int:
    """Encrypt with the newest key what an earlier one encrypted; how many parts that were."""
    stale = [part for part in parts if not box.is_current(getattr(part.webhook, part.column), context=part.context)]
    for part in stale:
        setattr(part.webhook, part.column, box.encrypt(part.plain, context=part.context))
    session.flush()
    return len(stale)


def _box(session: Session, settings: Settings) -> SecretBox:
    # SQLite's write lock first: a rotation of the key file, which holds it, comes before or after, never in between.
    session.connection()
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
