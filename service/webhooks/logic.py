"""Manages webhooks and stores events.

An event is stored in the transaction that it reports, with one delivery for each subscribed webhook. `sending` delivers
them.
"""

import base64
import hashlib
import ipaddress
import math
import secrets
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from featurewatch.service.config import Settings
from featurewatch.service.kit import clock, outbound
from featurewatch.service.kit.crypto import SecretBox, SecretKeyError
from featurewatch.service.kit.ids import new_id
from featurewatch.service.kit.pages import Page, Pager, newest_first
from featurewatch.service.kit.problems import ConflictError, NotFoundError, UnavailableError, UnprocessableError
from featurewatch.service.models import Delivery, Event, Webhook
from featurewatch.service.models.webhook import url_context
from featurewatch.service.webhooks import queries, schemas


class Unsealed(NamedTuple):
    """An encrypted column of a webhook and its plaintext."""

    webhook: Webhook
    column: str
    context: str
    plain: bytes


def emit(session: Session, *, type: str, family_id: str | None, data: dict[str, Any], key: str) -> Event:
    """Store an event and its deliveries in the caller's transaction.

    The event's id is a digest of `type` and `key`, so emitting the same event twice stores it once. Numbers that JSON
    cannot represent (NaN, infinities) become null.
    """
    event_id = "msg_" + hashlib.sha256(f"{type}\0{key}".encode()).hexdigest()[:32]
    known = session.get(Event, event_id)
    if known is not None:
        return known
    event = Event(id=event_id, type=type, family_id=family_id, data=plain(data), created_at=clock.database_now(session))
    try:
        with session.begin_nested():
            session.add(event)
    except IntegrityError:  # a concurrent transaction stored the same event
        return session.get_one(Event, event_id)
    for webhook in queries.listening(session):
        if not webhook.event_types or type in webhook.event_types:
            session.add(_delivery(webhook, event))
    session.flush()
    return event


def create(session: Session, settings: Settings, body: schemas.WebhookCreate) -> tuple[Webhook, str]:
    """Create a webhook. Returns it and its secret. URL and secret are stored encrypted and never shown again."""
    _check_literal(settings, body.url)
    secret = body.secret or _new_secret()
    webhook_id, box = new_id("whk"), _box(session, settings)
    webhook = Webhook(
        id=webhook_id,
        url=schemas.masked(body.url),
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
    """The webhook with this id. Raises NotFoundError."""
    webhook = session.get(Webhook, webhook_id)
    if webhook is None:
        raise NotFoundError(f"There is no webhook {webhook_id}.", code="unknown-webhook")
    return webhook


def page(session: Session, paging: Pager) -> Page[schemas.WebhookView]:
    """A page of webhooks, newest first."""
    return paging.fetch(session, select(Webhook), newest_first(Webhook), "webhooks", schemas.view)


def deliveries(
    session: Session, paging: Pager, webhook: Webhook, state: str | None = None
) -> Page[schemas.DeliveryView]:
    """A page of a webhook's deliveries, newest first."""
    statement = queries.deliveries(webhook.id)
    if state is not None:
        statement = statement.where(Delivery.state == state)
    order = f"deliveries {webhook.id} {state}"
    return paging.fetch(session, statement, newest_first(Delivery), order, schemas.delivery_view)


def change(session: Session, settings: Settings, webhook: Webhook, body: schemas.WebhookUpdate) -> None:
    """Apply the fields that are set. Enabling clears the reason for a pause and sends the waiting deliveries."""
    if body.url is not None:
        _check_literal(settings, body.url)
        webhook.url = schemas.masked(body.url)
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


def rotate(session: Session, settings: Settings, webhook: Webhook, body: schemas.RotateBody) -> str:
    """Set a new secret and return it. The old secret keeps signing as well for `body.hours`."""
    secret = body.secret or _new_secret()
    webhook.old_secret = webhook.old_secret_until = None
    if body.hours > 0:
        webhook.old_secret = webhook.secret
        webhook.old_secret_until = clock.utcnow() + timedelta(hours=body.hours)
    webhook.secret = _box(session, settings).encrypt(secret.encode(), context=webhook.id)
    session.flush()
    return secret


def test(session: Session, webhook: Webhook) -> tuple[Delivery, Event]:
    """Queue a test event for this webhook only."""
    _require_enabled(webhook)
    event = Event(
        id=f"msg_{secrets.token_hex(16)}",
        type=schemas.TEST_EVENT,
        family_id=None,
        data={"webhook": webhook.id, "message": "Test event requested through the API."},
        created_at=clock.database_now(session),
    )
    session.add(event)
    session.flush()
    delivery = _delivery(webhook, event)
    session.add(delivery)
    session.flush()
    return delivery, event


def get_delivery(session: Session, webhook: Webhook, delivery_id: str) -> tuple[Delivery, str]:
    """A delivery of a webhook, with the type of its event. Raises NotFoundError."""
    statement = queries.deliveries(webhook.id).where(Delivery.id == delivery_id)
    row = session.execute(statement).one_or_none()
    if row is None:
        raise NotFoundError(f"Webhook {webhook.id} has no delivery {delivery_id}.", code="unknown-delivery")
    return row


def redeliver(session: Session, webhook: Webhook, delivery_id: str) -> tuple[Delivery, str]:
    """Send a delivery again at once and restart its retry schedule. The log is kept."""
    _require_enabled(webhook)
    delivery, event_type = get_delivery(session, webhook, delivery_id)
    delivery.state, delivery.attempts, delivery.next_attempt_at = "pending", 0, clock.database_now(session)
    delivery.delivered_at = None
    session.flush()
    return delivery, event_type


def _delivery(webhook: Webhook, event: Event) -> Delivery:
    when = event.created_at
    return Delivery(webhook_id=webhook.id, event_id=event.id, created_at=when, next_attempt_at=when, log=[])


def _new_secret() -> str:
    return schemas.SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def _require_enabled(webhook: Webhook) -> None:
    if not webhook.enabled:
        raise ConflictError(f"Webhook {webhook.id} is disabled. Enable it first.", code="webhook-disabled")


def _check_literal(settings: Settings, url: str) -> None:
    """Refuse IP addresses early that every delivery would refuse. Host names can only be checked when connecting."""
    try:
        address = ipaddress.ip_address((urlsplit(url).hostname or "").split("%", 1)[0])
    except ValueError:
        return
    if not outbound.is_allowed(address, outbound.parse_networks(settings.webhook_allow)):
        raise UnprocessableError(
            f"Webhooks are not allowed to reach {address}. An operator can allow its network with "
            "FEATUREWATCH_WEBHOOK_ALLOW.",
            code="address-not-allowed",
        )


def unsealed(session: Session, box: SecretBox) -> list[Unsealed]:
    """Decrypt all encrypted columns of all webhooks, which stay locked until the transaction ends.

    Raises SecretKeyError, naming the webhook, if none of the keys can decrypt a column.
    """
    parts = []
    for webhook in queries.locked(session):
        contexts = {"sealed_url": url_context(webhook.id), "secret": webhook.id, "old_secret": webhook.id}
        for column, context in contexts.items():
            sealed: bytes | None = getattr(webhook, column)
            if sealed is None:
                continue
            try:
                parts.append(Unsealed(webhook, column, context, box.decrypt(sealed, context=context)))
            except SecretKeyError as error:
                raise SecretKeyError(f"webhook {webhook.id}: {error}, or delete the webhook") from error
    return parts


def reseal(session: Session, box: SecretBox, parts: list[Unsealed]) -> int:
    """Re-encrypt with the newest key everything that an older key encrypted. Returns the number of columns."""
    stale = [part for part in parts if not box.is_current(getattr(part.webhook, part.column), context=part.context)]
    for part in stale:
        setattr(part.webhook, part.column, box.encrypt(part.plain, context=part.context))
    session.flush()
    return len(stale)


def _box(session: Session, settings: Settings) -> SecretBox:
    # Takes SQLite's write lock first, which a key rotation holds, so that the key cannot change in between.
    session.connection()
    try:
        return SecretBox(settings)
    except SecretKeyError as error:
        raise UnavailableError(str(error), code="secret-key-missing") from error


def plain(value: Any) -> Any:
    """Convert a value to standard JSON: numpy scalars become Python numbers, NaN and infinities become null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if not isinstance(value, str | int | float | None):
        value = value.item() if hasattr(value, "item") else str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
