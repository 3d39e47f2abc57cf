"""`featurewatch webhook`, `alert`."""

from typing import Annotated, Any

import typer

from featurewatch.service.alerts.conditions import KINDS, WEBHOOK_PAUSED
from featurewatch.service.alerts.schemas import AlertState
from featurewatch.service.cli import alert_rules, base, complete
from featurewatch.service.cli.base import AsJson

webhook_app = typer.Typer(help="Webhooks: where events are sent.", no_args_is_help=True)
alert_app = typer.Typer(help="Alerts, and the rules that raise them.", no_args_is_help=True)
rule_app = typer.Typer(help="Alert rules.", no_args_is_help=True)

WebhookId = Annotated[str, typer.Argument(help="Id of the webhook, whk_...", autocompletion=complete.webhooks)]
AlertId = Annotated[str, typer.Argument(help="Id of the alert, alt_...", autocompletion=complete.alerts)]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the main one."""
    app.add_typer(webhook_app, name="webhook")
    rule_app.add_typer(alert_rules.app, name="create")
    alert_app.add_typer(rule_app, name="rule")
    app.add_typer(alert_app, name="alert")


@webhook_app.command("create")
def create_webhook(
    url: Annotated[str, typer.Argument(help="Where to POST events.")],
    event: Annotated[list[str] | None, typer.Option(help="Only these event types. May be repeated.")] = None,
    format: Annotated[
        str | None,
        typer.Option(help="standard, or slack: one line of text, for incoming webhooks of Slack and its like."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Register a webhook. Its secret is shown once: the receiver checks signatures with it."""
    with base.connect() as client:
        made = client.create_webhook(url, event_types=event or (), format=format)
    base.show_json(made) if as_json else base.show_fields(made.items())


@webhook_app.command("list")
def list_webhooks(as_json: AsJson = False) -> None:
    """List the webhooks."""
    with base.connect() as client:
        rows = list(client.webhooks())
    if as_json:
        return base.show_json(rows)
    columns = [
        ("ID", lambda row: row["id"]),
        ("URL", lambda row: row["url"]),
        ("EVENTS", lambda row: row["event_types"] or "all"),
        ("ENABLED", lambda row: row["enabled"]),
        ("WHY NOT", lambda row: row["disabled_reason"]),
    ]
    return base.show_rows(
        rows,
        columns,
        empty="No webhook yet; `featurewatch webhook create` makes one.",
        wraps=("URL", "WHY NOT"),
        optional=("EVENTS",),
    )


@webhook_app.command("delete")
def delete_webhook(webhook: WebhookId, as_json: AsJson = False) -> None:
    """Remove a webhook."""
    with base.connect() as client:
        client.delete_webhook(webhook)
    base.show_json({"deleted": webhook}) if as_json else base.say(f"{webhook} is deleted")


@webhook_app.command("enable")
def enable_webhook(webhook: WebhookId, as_json: AsJson = False) -> None:
    """Send to a webhook again that is disabled or paused, what waited first."""
    with base.connect() as client:
        row = client.update_webhook(webhook, enabled=True)
    base.show_json(row) if as_json else base.show_fields(row.items())


@webhook_app.command("rotate")
def rotate_secret(
    webhook: WebhookId,
    hours: Annotated[
        float | None, typer.Option(help="The old secret signs beside the new one for so long; default: 24.", min=0)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change the secret of a webhook. The new one is shown once."""
    with base.connect() as client:
        made = client.rotate_secret(webhook, hours=hours)
    base.show_json(made) if as_json else base.show_fields(made.items())


@webhook_app.command("test")
def test_webhook(webhook: WebhookId, as_json: AsJson = False) -> None:
    """Send a test event."""
    with base.connect() as client:
        made = client.test_webhook(webhook)
    base.show_json(made) if as_json else base.show_fields(made.items())


@webhook_app.command("deliveries")
def list_deliveries(webhook: WebhookId, as_json: AsJson = False) -> None:
    """List what was sent to a webhook, newest first."""
    with base.connect() as client:
        rows = list(client.deliveries(webhook))
    if as_json:
        return base.show_json(rows)
    columns = [
        ("ID", lambda row: row["id"]),
        ("TYPE", lambda row: row["type"]),
        ("STATE", lambda row: row["state"]),
        ("ATTEMPTS", lambda row: row["attempts"]),
        ("LAST ANSWER", _last_answer),
        ("CREATED", lambda row: base.moment(row["created_at"])),
    ]
    optional = ("ATTEMPTS", "CREATED")
    return base.show_rows(rows, columns, empty="Nothing was sent to it yet.", wraps=("LAST ANSWER",), optional=optional)


def _last_answer(row: dict[str, Any]) -> Any:
    last = row["log"][-1] if row["log"] else {}
    return last.get("status") or last.get("error")


@webhook_app.command("redeliver")
def redeliver(
    webhook: WebhookId,
    delivery: Annotated[str, typer.Argument(help="Id of the delivery, dlv_...", autocompletion=complete.deliveries)],
    as_json: AsJson = False,
) -> None:
    """Send a delivery once more."""
    with base.connect() as client:
        made = client.redeliver(webhook, delivery)
    base.show_json(made) if as_json else base.show_fields(made.items())


@rule_app.command("list")
def list_rules(as_json: AsJson = False) -> None:
    """List the alert rules."""
    with base.connect() as client:
        rows = list(client.alert_rules())
    if as_json:
        return base.show_json(rows)
    columns = [
        ("ID", lambda row: row["id"]),
        ("NAME", lambda row: row["name"]),
        ("FAMILY", lambda row: row["family"] or "all"),
        ("CONDITION", lambda row: row["condition"]),
        ("ENABLED", lambda row: row["enabled"]),
    ]
    return base.show_rows(
        rows,
        columns,
        empty="No alert rules yet. Create one with `featurewatch alert rule create`.",
        wraps=("CONDITION", "NAME"),
        optional=("ENABLED",),
    )


@rule_app.command("delete")
def delete_rule(
    rule: Annotated[str, typer.Argument(help="Id of the rule, rul_...", autocompletion=complete.rules)],
    as_json: AsJson = False,
) -> None:
    """Delete a rule and its alerts."""
    with base.connect() as client:
        client.delete_alert_rule(rule)
    base.show_json({"deleted": rule}) if as_json else base.say(f"{rule} is deleted")


@alert_app.command("list")
def list_alerts(
    family: Annotated[
        str | None, typer.Option(help="Only alerts of this family.", autocompletion=complete.families)
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Only alerts of this checkpoint.", autocompletion=complete.checkpoints)
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(
            help=f"Only alerts in this state: {', '.join(AlertState)}.",
            autocompletion=complete.words(*AlertState),
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help=f"Only alerts of this kind: that of their rule, or {WEBHOOK_PAUSED}.",
            autocompletion=complete.words(*KINDS, WEBHOOK_PAUSED),
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List alerts, newest first."""
    with base.connect() as client:
        rows = list(client.alerts(family=family, checkpoint=checkpoint, state=state, kind=kind))
    if as_json:
        return base.show_json(rows)
    columns = [
        ("ID", lambda row: row["id"]),
        ("STATE", lambda row: row["state"]),
        ("KIND", lambda row: row["kind"]),
        ("FAMILY", lambda row: row["family"]),
        ("CHECKPOINT", lambda row: row["checkpoint"]),
        ("SUMMARY", lambda row: row["summary"]),
        ("RAISED", lambda row: base.moment(row["created_at"])),
    ]
    return base.show_rows(rows, columns, empty="No alerts.", wraps=("SUMMARY",), optional=("KIND", "RAISED", "FAMILY"))


@alert_app.command("ack")
def acknowledge(alert: AlertId, as_json: AsJson = False) -> None:
    """Acknowledge an alert."""
    with base.connect() as client:
        row = client.acknowledge(alert)
    base.show_json(row) if as_json else base.show_fields([("state", row["state"])])


@alert_app.command("reopen")
def reopen(alert: AlertId, as_json: AsJson = False) -> None:
    """Reopen an acknowledged or muted alert."""
    with base.connect() as client:
        row = client.reopen(alert)
    base.show_json(row) if as_json else base.show_fields([("state", row["state"])])


@alert_app.command("mute")
def mute(
    alert: AlertId,
    hours: Annotated[
        float | None, typer.Option(help="Hours until the mute ends. Default: until the alert is resolved.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Mute an alert, and new ones of the same rule and family."""
    with base.connect() as client:
        row = client.mute(alert, hours=hours)
    base.show_json(row) if as_json else base.show_fields([("state", row["state"])])


@alert_app.command("resolve")
def resolve(alert: AlertId, as_json: AsJson = False) -> None:
    """Resolve an alert."""
    with base.connect() as client:
        row = client.resolve(alert)
    base.show_json(row) if as_json else base.show_fields([("state", row["state"])])
