"""Shapes of webhooks and deliveries in the API, and the types of events."""

import base64
import binascii
import ipaddress
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from service.models import Delivery, Webhook

SECRET_PREFIX = "whsec_"  # noqa: S105 - what secrets begin with


class EventType(StrEnum):
    CHECKPOINT_JUDGED = "checkpoint.judged"
    ALERT_RAISED = "alert.raised"
    ALERT_RESOLVED = "alert.resolved"
    RUN_FAILED = "run.failed"


TEST_EVENT = "webhook.test"
"""Sent on demand to one webhook, whatever types it wants."""


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("a webhook needs an http or https URL")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a webhook's URL cannot hold a user or password; put a token into its path")
    if parts.fragment:
        raise ValueError("a webhook's URL cannot have a fragment")
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("the port of the webhook's URL is none") from None
    return url


def _check_secret(secret: str) -> str:
    try:
        size = len(base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True))
    except binascii.Error:
        size = 0
    if not secret.startswith(SECRET_PREFIX) or not 24 <= size <= 64:
        raise ValueError("a secret is `whsec_` and the base64 of 24 to 64 random bytes")
    return secret


WebhookUrl = Annotated[str, Field(max_length=2000), AfterValidator(_check_url)]


class WebhookCreate(BaseModel):
    model_config = ConfigDict(extra="forbid")

    url: WebhookUrl = Field(examples=["https://ci.example.com/featurewatch"])
    event_types: list[EventType] = Field(default=[], max_length=20, description="Empty: all.")
    secret: Annotated[str, AfterValidator(_check_secret)] | None = Field(None, description="Default: a new one.")


class WebhookUpdate(BaseModel):
    model_config = ConfigDict(extra="forbid")

    url: WebhookUrl | None = None
    event_types: list[EventType] | None = Field(None, max_length=20)
    enabled: bool | None = None


class WebhookView(BaseModel):
    id: str
    url: str
    event_types: list[str]
    enabled: bool
    disabled_reason: str | None
    created_at: datetime


class WebhookCreated(WebhookView):
    secret: str = Field(description="Shown this once; the receiver verifies signatures with it.")


class AttemptView(BaseModel):
    """One attempt to deliver."""

    at: datetime
    status: int | None = Field(description="HTTP status; null: there was no answer.")
    error: str | None
    seconds: float
    response: str = Field(description="The first characters of the answer.")


class DeliveryView(BaseModel):
    id: str
    webhook: str
    event: str = Field(description="The `webhook-id` header, the same in every attempt.")
    type: str
    state: str = Field(description="pending, delivered or failed.")
    attempts: int
    next_attempt_at: datetime | None
    log: list[AttemptView]
    created_at: datetime
    delivered_at: datetime | None


def view(webhook: Webhook) -> WebhookView:
    """A webhook as the API shows it: without its secret."""
    return WebhookView.model_validate(webhook, from_attributes=True)


def created(webhook: Webhook, secret: str) -> WebhookCreated:
    """A new webhook with its secret."""
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


def literal_address(url: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address where a URL's host is one."""
    try:
        return ipaddress.ip_address((urlsplit(url).hostname or "").split("%", 1)[0])
    except ValueError:
        return None
