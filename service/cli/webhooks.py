"""`featurewatch webhook`."""

from typing import Annotated, Any

import typer

from featurewatch.service.cli import base, complete
from featurewatch.service.cli.command import Table, calls, command, deletes, fields
from featurewatch.service.client import Client, types

webhook_app = typer.Typer(help="Webhooks: URLs that receive events.", no_args_is_help=True)

WebhookId = Annotated[str, typer.Argument(help="Id of the webhook, whk_...", autocompletion=complete.webhooks)]


DeliveryId = Annotated[str, typer.Argument(help="Id of the delivery, dlv_...", autocompletion=complete.deliveries)]
Hours = Annotated[float | None, typer.Option(help="How long the old secret also signs; default: 24 hours.", min=0)]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the main one."""
    app.add_typer(webhook_app, name="webhook")


@command(webhook_app, "create", fields())
def create_webhook(
    client: Client,
    url: Annotated[str, typer.Argument(help="URL to POST events to.")],
    event: Annotated[list[str] | None, typer.Option(help="Only events of this type. May be repeated.")] = None,
    format: Annotated[
        str | None,
        typer.Option(help="standard, or slack: one line of text, for incoming webhooks of Slack and compatible chats."),
    ] = None,
) -> types.WebhookCreated:
    """Create a webhook. Its secret, with which the receiver verifies signatures, is shown only once."""
    return client.create_webhook(url, event_types=event or (), format=format)


def _response(delivery: dict[str, Any]) -> Any:
    last = delivery["log"][-1] if delivery["log"] else {}
    return last.get("status") or last.get("error")


WEBHOOKS = Table(
    ("id", "url", "events", "enabled", "reason"),
    {"events": lambda row: row["event_types"] or "all", "reason": "disabled_reason"},
    empty="No webhooks yet. Create one with `featurewatch webhook create`.",
    wraps=("url", "reason"),
    optional=("events",),
)
DELIVERIES = Table(
    ("id", "type", "state", "attempts", "response", "created"),
    {"response": _response, "created": lambda row: base.moment(row["created_at"])},
    empty="No deliveries yet.",
    wraps=("response",),
    optional=("attempts", "created"),
)

calls(webhook_app, "list", Client.webhooks, WEBHOOKS)
deletes(webhook_app, Client.delete_webhook, webhook=WebhookId)
calls(webhook_app, "rotate", Client.rotate_secret, fields(), webhook=WebhookId, hours=Hours)
calls(webhook_app, "test", Client.test_webhook, fields(), webhook=WebhookId)
calls(webhook_app, "deliveries", Client.deliveries, DELIVERIES, webhook=WebhookId)
calls(webhook_app, "redeliver", Client.redeliver, fields(), webhook=WebhookId, delivery=DeliveryId)


@command(webhook_app, "enable", fields())
def enable_webhook(client: Client, webhook: WebhookId) -> types.Webhook:
    """Enable a disabled or paused webhook. Events that are waiting for it are sent first."""
    return client.update_webhook(webhook, enabled=True)
