"""`featurewatch alert`."""

from typing import Annotated, Any

import typer

from featurewatch.service.cli import base, complete
from featurewatch.service.cli.base import AsJson
from featurewatch.service.client.wire import given

alert_app = typer.Typer(help="Alerts, and the rules that raise them.", no_args_is_help=True)
rule_app = typer.Typer(help="Alert rules.", no_args_is_help=True)

AlertId = Annotated[str, typer.Argument(help="Id of the alert, alt_...", autocompletion=complete.alerts)]
OfSignature = Annotated[
    str | None,
    typer.Option(help="When this signature changes; `any`: any of the family's.", autocompletion=complete.signatures),
]
Rewired = Annotated[
    str | None,
    typer.Option(
        help="When this feature is computed from others; `any`: any that is looked at.",
        autocompletion=complete.features,
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the main one."""
    alert_app.add_typer(rule_app, name="rule")
    app.add_typer(alert_app, name="alert")


@rule_app.command("create")
def create_rule(
    name: Annotated[str, typer.Argument(help="What the rule is called.")],
    family: Annotated[
        str | None, typer.Option(help="Only for this family; default: all.", autocompletion=complete.families)
    ] = None,
    feature: Annotated[
        str | None, typer.Option(help="When this feature changes.", autocompletion=complete.features)
    ] = None,
    tag: Annotated[str | None, typer.Option(help="When a feature with this tag changes.")] = None,
    watched: Annotated[bool, typer.Option("--watched", help="When any watched feature changes.")] = False,
    signature: OfSignature = None,
    rewired: Rewired = None,
    fvu: Annotated[float | None, typer.Option(help="When a checkpoint's FVU is over this.")] = None,
    fvu_ratio: Annotated[float | None, typer.Option(help="When its FVU is over so many times its parent's.")] = None,
    run_failed: Annotated[
        str | None, typer.Option(help="When runs of this kind fail, e.g. onboard; `any`: of any kind.")
    ] = None,
    silent_days: Annotated[float | None, typer.Option(help="When no checkpoint was judged for so many days.")] = None,
    status: Annotated[
        list[str] | None,
        typer.Option(help="Changes to these verdicts. May be repeated.", autocompletion=complete.statuses),
    ] = None,
    at_least: Annotated[
        int | None,
        typer.Option(
            help="When so many features change to the --status, or so many runs failed and none since.", min=1
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a rule of one kind.

    --feature, --tag, --watched, --signature, --rewired, --fvu and --fvu-ratio, --run-failed, --silent-days, or --status
    with --at-least.
    """
    asked: dict[str, dict[str, Any] | None] = {
        "feature": given(feature=feature) or None,
        "tag": given(tag=tag) or None,
        "watched": {} if watched else None,
        "signature": None if signature is None else {} if signature == "any" else {"signature": signature},
        "rewired": None if rewired is None else {} if rewired == "any" else {"feature": rewired},
        "quality": given(max_fvu=fvu, max_fvu_ratio=fvu_ratio) or None,
        "run_failed": None if run_failed is None else {} if run_failed == "any" else {"runs": [run_failed]},
        "absence": given(days=silent_days) or None,
    }
    chosen = {kind: fields for kind, fields in asked.items() if fields is not None}
    counted = given(at_least=at_least)
    if "run_failed" in chosen:
        chosen["run_failed"] |= counted
    elif counted:
        chosen["status_count"] = counted
    condition = _condition(chosen, status or [])
    with base.connect() as client:
        made = client.create_alert_rule(name, condition, family=family)
    base.show_json(made) if as_json else base.show_fields(made.items())


def _condition(asked: dict[str, dict[str, Any]], status: list[str]) -> dict[str, Any]:
    """The condition of a rule: of its one kind with that kind's fields. UsageError where there is not one."""
    if len(asked) != 1:
        raise base.UsageError("a rule needs one kind; featurewatch alert rule create --help names them")
    ((kind, fields),) = asked.items()
    if kind == "status_count":
        if len(status) != 1:
            raise base.UsageError("--at-least counts one verdict; give --status once")
        return {"kind": kind, "status": status[0], **fields}
    if kind in ("rewired", "quality", "run_failed", "absence") and status:
        raise base.UsageError("such a rule is no matter of a verdict; leave --status out")
    return {"kind": kind, **fields} | ({"statuses": status} if status else {})


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
        empty="No alert rule yet; `featurewatch alert rule create` makes one.",
        wraps=("CONDITION", "NAME"),
        optional=("ENABLED",),
    )


@rule_app.command("delete")
def delete_rule(
    rule: Annotated[str, typer.Argument(help="Id of the rule, rul_...", autocompletion=complete.rules)],
    as_json: AsJson = False,
) -> None:
    """Remove a rule with its alerts."""
    with base.connect() as client:
        client.delete_alert_rule(rule)
    base.show_json({"deleted": rule}) if as_json else base.say(f"{rule} is deleted")


@alert_app.command("list")
def list_alerts(
    family: Annotated[str | None, typer.Option(help="Only this family's.", autocompletion=complete.families)] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Only this checkpoint's.", autocompletion=complete.checkpoints)
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(
            help="open, acknowledged, muted or resolved.",
            autocompletion=complete.words("open", "acknowledged", "muted", "resolved"),
        ),
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Of rules of this kind, or webhook_paused.")] = None,
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
    return base.show_rows(rows, columns, empty="No alert.", wraps=("SUMMARY",), optional=("KIND", "RAISED", "FAMILY"))


@alert_app.command("ack")
def acknowledge(alert: AlertId, as_json: AsJson = False) -> None:
    """Say that somebody has seen it."""
    with base.connect() as client:
        row = client.acknowledge(alert)
    base.show_json(row) if as_json else base.show_fields([("state", row["state"])])


@alert_app.command("reopen")
def reopen(alert: AlertId, as_json: AsJson = False) -> None:
    """Take back that somebody has seen it, or a mute."""
    with base.connect() as client:
        row = client.reopen(alert)
    base.show_json(row) if as_json else base.show_fields([("state", row["state"])])


@alert_app.command("mute")
def mute(
    alert: AlertId,
    hours: Annotated[float | None, typer.Option(help="For so long; default: until it is resolved.")] = None,
    as_json: AsJson = False,
) -> None:
    """Keep quiet about an alert, and about new ones of the same rule and family."""
    with base.connect() as client:
        row = client.mute(alert, hours=hours)
    base.show_json(row) if as_json else base.show_fields([("state", row["state"])])


@alert_app.command("resolve")
def resolve(alert: AlertId, as_json: AsJson = False) -> None:
    """Say that it is over."""
    with base.connect() as client:
        row = client.resolve(alert)
    base.show_json(row) if as_json else base.show_fields([("state", row["state"])])
