"""`featurewatch webhook`."""

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from featurewatch.service.cli import base, complete
from featurewatch.service.cli.command import Table, command, deleted, fields
from featurewatch.service.client import Client, types

webhook_app = typer.Typer(help="Webhooks: URLs that receive events.", no_args_is_help=True)

WebhookId = Annotated[str, typer.Argument(help="Id of the webhook, whk_...", autocompletion=complete.webhooks)]


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


WEBHOOKS = Table(
    {
        "ID": "id",
        "URL": "url",
        "EVENTS": lambda row: row["event_types"] or "all",
        "ENABLED": "enabled",
        "REASON": "disabled_reason",
    },
    empty="No webhooks yet. Create one with `featurewatch webhook create`.",
    wraps=("URL", "REASON"),
    optional=("EVENTS",),
)


@command(webhook_app, "list", WEBHOOKS)
def list_webhooks(client: Client) -> Iterator[types.Webhook]:
    """List the webhooks."""
    return client.webhooks()


@command(webhook_app, "delete", deleted)
def delete_webhook(client: Client, webhook: WebhookId) -> dict[str, str]:
    """Delete a webhook."""
    client.delete_webhook(webhook)
    return {"deleted": webhook}


@command(webhook_app, "enable", fields())
def enable_webhook(client: Client, webhook: WebhookId) -> types.Webhook:
    """Enable a disabled or paused webhook. Events that are waiting for it are sent first."""
    return client.update_webhook(webhook, enabled=True)


@command(webhook_app, "rotate", fields())
def rotate_secret(
    client: Client,
    webhook: WebhookId,
    hours: Annotated[
        float | None, typer.Option(help="How long the old secret also signs; default: 24 hours.", min=0)
    ] = None,
) -> types.WebhookCreated:
    """Replace the secret of a webhook. The new one is shown only once."""
    return client.rotate_secret(webhook, hours=hours)


@command(webhook_app, "test", fields())
def test_webhook(client: Client, webhook: WebhookId) -> types.Delivery:
    """Send a test event."""
    return client.test_webhook(webhook)


def _last_answer(row: dict[str, Any]) -> Any:
    last = row["log"][-1] if row["log"] else {}
    return last.get("status") or last.get("error")


DELIVERIES = Table(
    {
        "ID": "id",
        "TYPE": "type",
        "STATE": "state",
        "ATTEMPTS": "attempts",
        "RESPONSE": _last_answer,
        "CREATED": lambda row: base.moment(row["created_at"]),
    },
    empty="No deliveries yet.",
    wraps=("RESPONSE",),
    optional=("ATTEMPTS", "CREATED"),
)


@command(webhook_app, "deliveries", DELIVERIES)
def list_deliveries(client: Client, webhook: WebhookId) -> Iterator[types.Delivery]:
    """List the deliveries to a webhook, newest first."""
    return client.deliveries(webhook)


@command(webhook_app, "redeliver", fields())
def redeliver(
    client: Client,
    webhook: WebhookId,
    delivery: Annotated[str, typer.Argument(help="Id of the delivery, dlv_...", autocompletion=complete.deliveries)],
) -> types.Delivery:
    """Send a delivery again."""
    return client.redeliver(webhook, delivery)
