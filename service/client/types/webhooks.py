"""Shapes of the REST API about webhooks, as the client returns and takes them: dictionaries with known keys.

Written by `make docs` from the OpenAPI document.
"""

from typing import Literal

from typing_extensions import TypedDict


class WebhookCreated(TypedDict):
    """`WebhookCreated` of the OpenAPI document."""

    id: str
    url: str
    event_types: list[str]
    format: Literal["standard", "slack"]
    enabled: bool
    disabled_reason: str | None
    failing_since: str | None
    paused_at: str | None
    old_secret_until: str | None
    created_at: str
    secret: str


class Webhook(TypedDict):
    """`WebhookView` of the OpenAPI document."""

    id: str
    url: str
    event_types: list[str]
    format: Literal["standard", "slack"]
    enabled: bool
    disabled_reason: str | None
    failing_since: str | None
    paused_at: str | None
    old_secret_until: str | None
    created_at: str


class DeliveryAttempt(TypedDict):
    """One delivery attempt."""

    at: str
    status: int | None
    error: str | None
    seconds: float
    response: str


EventType = Literal[
    "checkpoint.judged", "checkpoint.deleted", "family.deleted", "alert.raised", "alert.resolved", "run.failed"
]


class Delivery(TypedDict):
    """`DeliveryView` of the OpenAPI document."""

    id: str
    webhook: str
    event: str
    type: str
    state: str
    attempts: int
    next_attempt_at: str | None
    log: list[DeliveryAttempt]
    created_at: str
    delivered_at: str | None
