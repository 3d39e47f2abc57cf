"""Delivers events to webhooks (Standard Webhooks 1.0).

A sweep claims due deliveries, sends them outside of any transaction and records the result. If a sender dies in
between, the delivery becomes due again: delivery is at least once, under a stable `webhook-id`.
"""

import json
import math
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import httpx2
from sqlalchemy.orm import Session
from standardwebhooks import Webhook as Signer

from featurewatch.service.kit import clock, outbound
from featurewatch.service.kit.crypto import SecretBox, SecretKeyError
from featurewatch.service.models import Delivery, Event, Webhook
from featurewatch.service.models.webhook import url_context
from featurewatch.service.webhooks import describe, queries

RETRY_DELAYS = tuple(
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
"""The retry schedule: delays between attempts. After the last one the delivery fails. Stored in the database instead of
using tenacity, because the schedule outlives the process."""

JITTER = 0.1
LONGEST_RETRY_AFTER = RETRY_DELAYS[-1]
RESERVED = timedelta(seconds=60)
"""Longer than an attempt can take. Deliveries of a dead sender become due again after it."""

MIN_TOKEN = 8
"""Shortest part of a URL's path or query, in characters, that is treated as a secret token."""
LOG_ENTRIES = 30
LOG_CHARACTERS = 1000
_random = secrets.SystemRandom()


@dataclass(frozen=True)
class Parcel:
    """One claimed delivery, with everything needed to send it without a database."""

    delivery_id: str
    webhook_id: str
    reserved_until: datetime
    sealed_url: bytes
    sealed_secrets: tuple[bytes, ...]
    """The newest first."""
    event_id: str
    body: bytes


@dataclass(frozen=True)
class AttemptResult:
    """The result of one delivery attempt. `status` is None if there was no response."""

    status: int | None
    error: str | None
    seconds: float
    response: str
    retry_after: str | None = None


def claim_due(session: Session, *, limit: int, excluding: Collection[str] = ()) -> list[Parcel]:
    """Reserve due deliveries, except of the webhooks in `excluding`. The caller commits before sending them."""
    now = clock.database_now(session)
    until = now + RESERVED
    parcels = []
    for delivery, webhook, event in queries.due(session, now=now, limit=limit, excluding=excluding):
        if queries.reserve(session, delivery.id, now=now, until=until):
            body = payload(event, webhook.format)
            secrets_ = _secrets(webhook, now)
            parcels.append(Parcel(delivery.id, webhook.id, until, webhook.sealed_url, secrets_, event.id, body))
    return parcels


def payload(event: Event, format_: str) -> bytes:
    """The body of an event's deliveries. It depends only on the row, so a retry sends the same bytes."""
    document: dict[str, Any] = {"type": event.type, "timestamp": event.created_at.isoformat(), "data": event.data}
    if format_ == "slack":
        document = {"text": describe.escaped(describe.text(event.type, event.data))}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()


def send(parcel: Parcel, box: SecretBox, allow: Sequence[outbound.Network], seconds: float) -> AttemptResult:
    """Sign and POST within `seconds`. Never raises because of the receiver, the network or a changed key."""
    began, url = datetime.now(UTC), ""
    try:
        url = box.decrypt(parcel.sealed_url, context=url_context(parcel.webhook_id)).decode()
        now = clock.utcnow()  # must be UTC, because the library's sign() ignores the time zone
        signers = [Signer(box.decrypt(sealed, context=parcel.webhook_id).decode()) for sealed in parcel.sealed_secrets]
        signatures = [signer.sign(parcel.event_id, now, parcel.body.decode()) for signer in signers]
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "featurewatch-webhooks/1",
            "webhook-id": parcel.event_id,
            "webhook-timestamp": str(math.floor(now.timestamp())),
            "webhook-signature": " ".join(signatures),
        }
        reply = outbound.post(url, body=parcel.body, headers=headers, allow=tuple(allow), total_seconds=seconds)
    except (httpx2.HTTPError, httpx2.InvalidURL, SecretKeyError) as error:
        took = (datetime.now(UTC) - began).total_seconds()
        message = _redacted(url, f"{type(error).__name__}: {error}")[:LOG_CHARACTERS]
        return AttemptResult(None, message, took, "")
    # Postgres text cannot contain NUL.
    text = _redacted(url, reply.body.decode("utf-8", errors="replace").replace("\0", "\ufffd"))[:LOG_CHARACTERS]
    fault = None if 200 <= reply.status < 300 else f"status {reply.status}"
    return AttemptResult(reply.status, fault, reply.seconds, text, reply.retry_after)


def _redacted(url: str, text: str) -> str:
    """Remove a URL's secrets from text for the log: receivers echo the path, as in `Cannot POST /hooks/...`."""
    parts = urlsplit(url)
    values = [value for _, value in parse_qsl(parts.query)]
    long = [part for part in (*parts.path.split("/"), *values) if len(part) >= MIN_TOKEN]
    hidden = {url, f"{parts.path}?{parts.query}", parts.path, parts.query, *long} - {"", "/", "?", "/?"}
    for part in sorted(hidden | {unquote(part) for part in hidden}, key=len, reverse=True):
        text = text.replace(part, "…")
    return text


def record(session: Session, parcel: Parcel, result: AttemptResult, *, pause_after: timedelta) -> bool:
    """Log an attempt and schedule the next one. False if the reservation had expired; nothing is written then.

    A webhook whose deliveries have all failed for `pause_after` is paused (0: never).
    """
    delivery = session.get(Delivery, parcel.delivery_id, populate_existing=True)
    if delivery is None:
        return False
    now = clock.database_now(session)
    entry = {
        "at": now.isoformat(),
        "status": result.status,
        "error": result.error,
        "seconds": round(result.seconds, 3),
        "response": result.response,
    }
    attempts = delivery.attempts + 1
    values: dict[str, Any] = {"attempts": attempts, "log": [*delivery.log, entry][-LOG_ENTRIES:]}
    if result.error is None:
        values |= {"state": "delivered", "delivered_at": now, "next_attempt_at": None}
    elif result.status == 410 or attempts > len(RETRY_DELAYS):
        values |= {"state": "failed", "next_attempt_at": None}
    else:
        values["next_attempt_at"] = now + _wait(attempts, result.retry_after)
    if not queries.settle(session, delivery.id, reserved_until=parcel.reserved_until, **values):
        return False
    if result.error is None:
        queries.clear_failing(session, parcel.webhook_id)
    elif result.status == 410:
        queries.disable(session, parcel.webhook_id, "the receiver responded with 410 Gone")
    else:
        _note_failure(session, parcel.webhook_id, now, pause_after)
    return True


def _wait(attempts: int, retry_after: str | None) -> timedelta:
    """The next wait of the schedule, or the receiver's `Retry-After` if that is longer."""
    planned = RETRY_DELAYS[attempts - 1] * _random.uniform(1, 1 + JITTER)
    requested = clock.seconds_of(retry_after, clock.utcnow()) or 0.0
    return max(planned, timedelta(seconds=min(requested, LONGEST_RETRY_AFTER.total_seconds())))


def _note_failure(session: Session, webhook_id: str, now: datetime, pause_after: timedelta) -> None:
    since = queries.set_failing(session, webhook_id, now)
    if since is not None and pause_after and now - since >= pause_after:
        queries.pause(session, webhook_id, now, f"no delivery has succeeded since {since.date().isoformat()}")


def _secrets(webhook: Webhook, now: datetime) -> tuple[bytes, ...]:
    if webhook.old_secret is None or webhook.old_secret_until is None or webhook.old_secret_until <= now:
        return (webhook.secret,)
    return webhook.secret, webhook.old_secret
