"""`featurewatch webhook`."""

from typing import Annotated, Any

import typer

from featurewatch.service.cli import base, complete
from featurewatch.service.cli.command import Table, calls, command, deletes, fields
from featurewatch.service.client import Client, types

app = typer.Typer(name="webhook", help="Webhooks: URLs that receive events.", no_args_is_help=True)

WebhookId = Annotated[str, typer.Argument(help="Id of the webhook, whk_...", autocompletion=complete.webhooks)]


DeliveryId = Annotated[str, typer.Argument(help="Id of the delivery, dlv_...", autocompletion=complete.deliveries)]
Hours = Annotated[float | None, typer.Option(help="How long the old secret also signs; default: 24 hours.", min=0)]


@command(app, "create", fields())
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

calls(app, "list", Client.webhooks, WEBHOOKS)
deletes(app, Client.delete_webhook, webhook=WebhookId)
calls(app, "rotate", Client.rotate_secret, fields(), webhook=WebhookId, hours=Hours)
calls(app, "test", Client.test_webhook, fields(), webhook=WebhookId)
calls(app, "deliveries", Client.deliveries, DELIVERIES, webhook=WebhookId)
calls(app, "redeliver", Client.redeliver, fields(), webhook=WebhookId, delivery=DeliveryId)


@command(app, "enable", fields())
def enable_webhook(client: Client, webhook: WebhookId) -> types.Webhook:
    """Enable a disabled or paused webhook. Events that are waiting for it are sent first."""
    return client.update_webhook(webhook, enabled=True)
