"""JSON of webhooks and deliveries, and the event types."""

import base64
import binascii
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from featurewatch.service.models import Delivery, Webhook

SECRET_PREFIX = "whsec_"  # noqa: S105 - a prefix, not a secret


class EventType(StrEnum):
    CHECKPOINT_JUDGED = "checkpoint.judged"
    CHECKPOINT_DELETED = "checkpoint.deleted"
    FAMILY_DELETED = "family.deleted"
    ALERT_RAISED = "alert.raised"
    ALERT_RESOLVED = "alert.resolved"
    RUN_FAILED = "run.failed"


Format = Literal["standard", "slack"]

MASK = "/…"
"""Replaces the path and query of a webhook's URL."""

TEST_EVENT = "webhook.test"
"""Sent on demand to one webhook, whatever it subscribes to."""


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("a webhook needs an http or https URL")
    if parts.username is not None or parts.password is not None:
        raise ValueError("the URL must not contain a user or password; put a token in its path")
    if parts.fragment:
        raise ValueError("the URL must not have a fragment")
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("the URL has an invalid port") from None
    if url.endswith(MASK):
        raise ValueError("this is the masked form of a URL; send the full URL or omit it")
    return url


def masked(url: str) -> str:
    """A URL for display: scheme and host only, `https://hooks.slack.com/…`."""
    parts = urlsplit(url)
    hides = bool(parts.path.strip("/") or parts.query)
    return f"{parts.scheme}://{parts.netloc}{MASK if hides else parts.path}"


def _check_secret(secret: str) -> str:
    try:
        size = len(base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True))
    except binascii.Error:
        size = 0
    if not secret.startswith(SECRET_PREFIX) or not 24 <= size <= 64:
        raise ValueError("a secret must be `whsec_` followed by the base64 of 24 to 64 random bytes")
    return secret


WebhookUrl = Annotated[str, Field(max_length=2000), AfterValidator(_check_url)]
Secret = Annotated[str, AfterValidator(_check_secret)]


class WebhookCreate(BaseModel):
    model_config = ConfigDict(extra="forbid")

    url: WebhookUrl = Field(examples=["https://ci.example.com/featurewatch"])
    event_types: list[EventType] = Field(default=[], max_length=20, description="Default: all.")
    format: Format = Field(
        "standard",
        description="Format of the body: Standard Webhooks, or `{text}` for Slack-compatible incoming webhooks.",
    )
    secret: Secret | None = Field(None, description="Default: a generated secret.")


class WebhookUpdate(BaseModel):
    model_config = ConfigDict(extra="forbid")

    url: WebhookUrl | None = None
    event_types: list[EventType] | None = Field(None, max_length=20)
    format: Format | None = None
    enabled: bool | None = None


class RotateBody(BaseModel):
    """A new secret, and how long the old one stays valid."""

    model_config = ConfigDict(extra="forbid")

    secret: Secret | None = Field(None, description="Default: a generated secret.")
    hours: float = Field(24.0, ge=0, le=24 * 30, description="How long the old secret stays valid. 0: not at all.")


class WebhookView(BaseModel):
    id: str
    url: str = Field(description="Scheme and host. `/…` replaces path and query, which are never shown.")
    event_types: list[str]
    format: Format
    enabled: bool
    disabled_reason: str | None
    failing_since: datetime | None = Field(description="Time of the first failure since the last success.")
    paused_at: datetime | None = Field(
        description="When it was paused because all deliveries failed for days. Deliveries wait until it is enabled."
    )
    old_secret_until: datetime | None = Field(description="Until when deliveries are also signed with the old secret.")
    created_at: datetime


class WebhookCreated(WebhookView):
    secret: str = Field(description="Shown only once. The receiver verifies signatures with it.")


class AttemptView(BaseModel):
    """One delivery attempt."""

    at: datetime
    status: int | None = Field(description="HTTP status. Null if there was no response.")
    error: str | None
    seconds: float
    response: str = Field(description="Start of the response body.")


class DeliveryView(BaseModel):
    id: str
    webhook: str
    event: str = Field(description="The `webhook-id` header, identical in every attempt.")
    type: str
    state: str = Field(description="pending, delivered or failed.")
    attempts: int
    next_attempt_at: datetime | None
    log: list[AttemptView]
    created_at: datetime
    delivered_at: datetime | None


def view(webhook: Webhook) -> WebhookView:
    """A webhook for the API, without its secret and the path and query of its URL."""
    return WebhookView.model_validate(webhook, from_attributes=True)


def created(webhook: Webhook, secret: str) -> WebhookCreated:
    """A webhook with its new secret."""
    return WebhookCreated(**view(webhook).model_dump(), secret=secret)


def delivery_view(delivery: Delivery, type_: str) -> DeliveryView:
    """A delivery with its attempts."""
    log: list[Any] = delivery.log
    return DeliveryView(
        id=delivery.id,
        webhook=delivery.webhook_id,
        event=delivery.event_id,
        type=type_,
        state=delivery.state,
        attempts=delivery.attempts,
        next_attempt_at=delivery.next_attempt_at,
        log=[AttemptView.model_validate(entry) for entry in log],
        created_at=delivery.created_at,
        delivered_at=delivery.delivered_at,
    )
