"""`featurewatch alert`."""

from typing import Annotated

import typer

from featurewatch.service.alerts.conditions import KINDS, WEBHOOK_PAUSED
from featurewatch.service.alerts.schemas import AlertState
from featurewatch.service.cli import alert_rules, base, complete
from featurewatch.service.cli.arguments import OfFamily, checkpoint_option
from featurewatch.service.cli.command import Table, calls, deletes, fields
from featurewatch.service.client import Client

app = typer.Typer(name="alert", help="Alerts, and the rules that raise them.", no_args_is_help=True)
rule_app = typer.Typer(name="rule", help="Alert rules.", no_args_is_help=True)
rule_app.add_typer(alert_rules.app)
app.add_typer(rule_app)

AlertId = Annotated[str, typer.Argument(help="Id of the alert, alt_...", autocompletion=complete.alerts)]
RuleId = Annotated[str, typer.Argument(help="Id of the rule, rul_...", autocompletion=complete.rules)]
OfCheckpoint = Annotated[str | None, checkpoint_option("Show only this checkpoint.")]
State = Annotated[
    str | None,
    typer.Option(help=f"Show only this state: {', '.join(AlertState)}.", autocompletion=complete.words(*AlertState)),
]
Kind = Annotated[
    str | None,
    typer.Option(
        help=f"Show only this kind: a rule kind, or {WEBHOOK_PAUSED}.",
        autocompletion=complete.words(*KINDS, WEBHOOK_PAUSED),
    ),
]
Hours = Annotated[float | None, typer.Option(help="Hours until the mute ends; default: until the alert is resolved.")]


RULES = Table(
    ("id", "name", "family", "condition", "enabled"),
    {"family": lambda row: row["family"] or "all"},
    empty="No alert rules yet. Create one with `featurewatch alert rule create`.",
    wraps=("condition", "name"),
    optional=("enabled",),
)
ALERTS = Table(
    ("id", "state", "kind", "family", "checkpoint", "summary", "raised"),
    {"raised": lambda row: base.moment(row["created_at"])},
    empty="No alerts.",
    wraps=("summary",),
    optional=("kind", "raised", "family"),
)

calls(rule_app, "list", Client.alert_rules, RULES)
deletes(rule_app, Client.delete_alert_rule, rule=RuleId)
calls(app, "list", Client.alerts, ALERTS, family=OfFamily, checkpoint=OfCheckpoint, state=State, kind=Kind)
calls(app, "ack", Client.acknowledge, fields("state"), alert=AlertId)
calls(app, "reopen", Client.reopen, fields("state"), alert=AlertId)
calls(app, "mute", Client.mute, fields("state"), alert=AlertId, hours=Hours)
calls(app, "resolve", Client.resolve, fields("state"), alert=AlertId)
