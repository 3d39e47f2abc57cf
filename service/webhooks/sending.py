"""The way of events to the webhooks (Standard Webhooks 1.0).

A sweep claims due deliveries, sends them outside of any transaction, and writes down what came of it. A sender that
dies in between leaves a delivery that becomes due again: at least once, under one stable `webhook-id`.
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
from featurewatch.service.webhooks import queries, words

WAITS = tuple(
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
"""Waits between the attempts; after the last one the delivery is given up. Stored in the database rather than slept by
tenacity: the schedule outlives the process."""

JITTER = 0.1
LONGEST_RETRY_AFTER = WAITS[-1]
RESERVED = timedelta(seconds=60)
"""Longer than an attempt can take; a sender that dies gives its deliveries back after it."""

LEAST_SECRET = 8
"""Characters of a part of a URL's path or query that is taken for a token."""
LOG_ENTRIES = 30
LOG_CHARACTERS = 1000
_random = secrets.SystemRandom()


@dataclass(frozen=True)
class Parcel:
    """One claimed delivery: all that is needed to send it without a database."""

    delivery_id: str
    webhook_id: str
    reserved_until: datetime
    sealed_url: bytes
    sealed_secrets: tuple[bytes, ...]
    """The newest first."""
    event_id: str
    body: bytes


@dataclass(frozen=True)
class Outcome:
    """What came of one attempt. `status` is None where there was no answer."""

    status: int | None
    error: str | None
    seconds: float
    response: str
    retry_after: str | None = None


def claim_due(session: Session, *, limit: int, but: Collection[str] = ()) -> list[Parcel]:
    """Reserve deliveries that are due, none of the webhooks `but`. The caller commits before it sends them."""
    now = clock.database_now(session)
    until = now + RESERVED
    parcels = []
    for delivery, webhook, event in queries.due(session, now=now, limit=limit, but=but):
        if queries.reserve(session, delivery.id, now=now, until=until):
            body = payload(event, webhook.format)
            secrets_ = _secrets(webhook, now)
            parcels.append(Parcel(delivery.id, webhook.id, until, webhook.sealed_url, secrets_, event.id, body))
    return parcels


def payload(event: Event, format_: str) -> bytes:
    """The body of every delivery of an event: made from the row alone, so a retry sends the same bytes."""
    document: dict[str, Any] = {"type": event.type, "timestamp": event.created_at.isoformat(), "data": event.data}
    if format_ == "slack":
        document = {"text": words.escaped(words.text(event.type, event.data))}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()


def send(parcel: Parcel, box: SecretBox, allow: Sequence[outbound.Network], seconds: float) -> Outcome:
    """Sign and POST; never raises for what a receiver, the network or a changed key can do.

    seconds: how long the whole of it may take.
    """
    began, url = datetime.now(UTC), ""
    try:
        url = box.decrypt(parcel.sealed_url, context=url_context(parcel.webhook_id)).decode()
        now = clock.utcnow()  # UTC: the library's sign() takes the digits and drops the zone
        signers = [Signer(box.decrypt(sealed, context=parcel.webhook_id).decode()) for sealed in parcel.sealed_secrets]
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "featurewatch-webhooks/1",
            "webhook-id": parcel.event_id,
            "webhook-timestamp": str(math.floor(now.timestamp())),
            "webhook-signature": " ".join(one.sign(parcel.event_id, now, parcel.body.decode()) for one in signers),
        }
        reply = outbound.post(url, body=parcel.body, headers=headers, allow=tuple(allow), total_seconds=seconds)
    except (httpx2.HTTPError, httpx2.InvalidURL, SecretKeyError) as error:
        took = (datetime.now(UTC) - began).total_seconds()
        return Outcome(None, _without(url, f"{type(error).__name__}: {error}")[:LOG_CHARACTERS], took, "")
    # Postgres text cannot hold a NUL.
    text = _without(url, reply.body.decode("utf-8", errors="replace").replace("\0", "\ufffd"))[:LOG_CHARACTERS]
    fault = None if 200 <= reply.status < 300 else f"status {reply.status}"
    return Outcome(reply.status, fault, reply.seconds, text, reply.retry_after)


def _without(url: str, text: str) -> str:
    """Text for the log without what a URL keeps secret: receivers repeat the path, as `Cannot POST /hooks/...` does."""
    parts = urlsplit(url)
    values = [value for _, value in parse_qsl(parts.query)]
    long = [part for part in (*parts.path.split("/"), *values) if len(part) >= LEAST_SECRET]
    hidden = {url, f"{parts.path}?{parts.query}", parts.path, parts.query, *long} - {"", "/", "?", "/?"}
    for part in sorted(hidden | {unquote(part) for part in hidden}, key=len, reverse=True):
        text = text.replace(part, "…")
    return text


def record(session: Session, parcel: Parcel, outcome: Outcome, *, pause_after: timedelta) -> bool:
    """Write an attempt into the log and say what is next. False: the reservation was over, nothing was written.

    A webhook that has only failed for `pause_after` is paused (0: never).
    """
    delivery = session.get(Delivery, parcel.delivery_id, populate_existing=True)
    if delivery is None:
        return False
    now = clock.database_now(session)
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
    elif outcome.status == 410 or attempts > len(WAITS):
        values |= {"state": "failed", "next_attempt_at": None}
    else:
        values["next_attempt_at"] = now + _wait(attempts, outcome.retry_after)
    if not queries.settle(session, delivery.id, reserved_until=parcel.reserved_until, **values):
        return False
    if outcome.error is None:
        queries.works(session, parcel.webhook_id)
    elif outcome.status == 410:
        queries.disable(session, parcel.webhook_id, "the receiver answered 410 Gone")
    else:
        _fails(session, parcel.webhook_id, now, pause_after)
    return True


def _wait(attempts: int, retry_after: str | None) -> timedelta:
    """The schedule's next wait, or the longer one that the receiver asked for."""
    planned = WAITS[attempts - 1] * _random.uniform(1, 1 + JITTER)
    asked = clock.seconds_of(retry_after, clock.utcnow()) or 0.0
    return max(planned, timedelta(seconds=min(asked, LONGEST_RETRY_AFTER.total_seconds())))


def _fails(session: Session, webhook_id: str, now: datetime, pause_after: timedelta) -> None:
    since = queries.fails(session, webhook_id, now)
    if since is not None and pause_after and now - since >= pause_after:
        queries.pause(session, webhook_id, now, f"no delivery has succeeded since {since.date().isoformat()}")


def _secrets(webhook: Webhook, now: datetime) -> tuple[bytes, ...]:
    if webhook.old_secret is None or webhook.old_secret_until is None or webhook.old_secret_until <= now:
        return (webhook.secret,)
    return webhook.secret, webhook.old_secret
