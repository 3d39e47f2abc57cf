"""`featurewatch alert rule create`: a command for each kind of rule."""

import shlex
from collections.abc import Iterable, Iterator
from inspect import Parameter as Argument
from inspect import Signature
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from featurewatch.service.alerts.conditions import KINDS
from featurewatch.service.alerts.parameters import Parameter, parameters
from featurewatch.service.cli import base, complete
from featurewatch.service.cli.command import command, fields
from featurewatch.service.client import Client, types
from featurewatch.service.client.wire import given
from featurewatch.service.runs.kinds import RunKind

Name = Annotated[str, typer.Argument(help="Name of the rule.")]
Family = Annotated[
    str | None, typer.Option(help="Only for this family. Default: every family.", autocompletion=complete.families)
]
_COMPLETERS: dict[str, Any] = {
    "feature": complete.features,
    "signature": complete.signatures,
    "run": complete.words(*RunKind),
}
_DEPRECATED = "without-kind"


class _Group(TyperGroup):
    """The kinds as commands, and the form without a kind that they replace."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Hand a command line of the deprecated form to its command."""
        return super().parse_args(ctx, [_DEPRECATED, *args] if self._without_kind(args) else args)

    def _without_kind(self, args: list[str]) -> bool:
        if not args or args == ["--help"]:
            return False
        named_like_a_kind = len(list(_positional(args))) == 1 and not _DEPRECATED_OPTIONS.isdisjoint(args)
        return args[0] not in self.commands or named_like_a_kind


def _positional(args: Iterable[str]) -> Iterator[str]:
    """The words of a command line that are neither options nor their values."""
    left = iter(args)
    for arg in left:
        if not arg.startswith("-"):
            yield arg
        elif "=" not in arg and arg not in ("--json", "--watched", "--help"):
            next(left, None)


app = typer.Typer(
    name="create",
    cls=_Group,
    help="Create an alert rule: the kind, a name, and the parameters of the kind.",
    no_args_is_help=True,
)


def _add_kind(kind: str) -> None:
    cls = KINDS[kind]
    names = {parameter.one: parameter.name for parameter in parameters(cls)}

    def create(client: Client, name: str, family: str | None, **options: Any) -> types.AlertRule:
        condition: dict[str, Any] = {names[one]: value for one, value in given(**options).items() if value != []}
        return client.create_alert_rule(name, condition | {"kind": kind}, family=family)

    create.__doc__ = f"Raise an alert when {cls.when()}."
    create.__signature__ = Signature([  # type: ignore[attr-defined]
        Argument("client", Argument.KEYWORD_ONLY),
        Argument("name", Argument.KEYWORD_ONLY, annotation=Name),
        Argument("family", Argument.KEYWORD_ONLY, annotation=Family, default=None),
        *(Argument(each.one, Argument.KEYWORD_ONLY, **_option(each)) for each in parameters(cls)),
    ])  # fmt: skip
    command(app, kind.replace("_", "-"), fields())(create)


def _option(parameter: Parameter) -> dict[str, Any]:
    """Annotation and default of the option for a parameter."""
    completer = complete.words(*parameter.choices) if parameter.choices else _COMPLETERS.get(parameter.one)
    repeated = " May be repeated." if parameter.many else ""
    option = typer.Option(help=parameter.help + repeated, autocompletion=completer)
    if parameter.required:
        return {"annotation": Annotated[parameter.type, option]}
    kind: Any = list[parameter.type] if parameter.many else parameter.type  # type: ignore[name-defined]
    return {"annotation": Annotated[kind | None, option], "default": None}


for _kind in KINDS:
    _add_kind(_kind)


@command(app, _DEPRECATED, fields(), hidden=True)
def create_without_kind(
    client: Client,
    name: Name,
    family: Family = None,
    feature: Annotated[str | None, typer.Option(autocompletion=complete.features)] = None,
    tag: str | None = None,
    watched: Annotated[bool, typer.Option("--watched")] = False,
    signature: Annotated[str | None, typer.Option(autocompletion=complete.signatures)] = None,
    rewired: Annotated[str | None, typer.Option(autocompletion=complete.features)] = None,
    fvu: float | None = None,
    fvu_ratio: float | None = None,
    run_failed: str | None = None,
    silent_days: float | None = None,
    status: Annotated[list[str] | None, typer.Option(autocompletion=complete.statuses)] = None,
    at_least: Annotated[int | None, typer.Option(min=1)] = None,
) -> types.AlertRule:
    """Create a rule of the kind that its options imply. Deprecated."""
    by_kind: dict[str, dict[str, Any] | None] = {
        "feature": given(feature=feature) or None,
        "tag": given(tag=tag) or None,
        "watched": {} if watched else None,
        "signature": None if signature is None else {} if signature == "any" else {"signature": signature},
        "rewired": None if rewired is None else {} if rewired == "any" else {"feature": rewired},
        "quality": given(max_fvu=fvu, max_fvu_ratio=fvu_ratio) or None,
        "run_failed": None if run_failed is None else {} if run_failed == "any" else {"runs": [run_failed]},
        "absence": given(days=silent_days) or None,
    }
    chosen = {kind: values for kind, values in by_kind.items() if values is not None}
    if "run_failed" in chosen:
        chosen["run_failed"] |= given(at_least=at_least)
    elif at_least is not None:
        chosen["status_count"] = {"at_least": at_least}
    condition = _condition_of(chosen, status or [])
    base.say(f"This form is deprecated. Use: {_command_line(name, condition, family)}")
    return client.create_alert_rule(name, condition, family=family)


_DEPRECATED_OPTIONS = {
    *("--feature", "--tag", "--watched", "--signature", "--rewired", "--fvu", "--fvu-ratio", "--run-failed"),
    *("--silent-days", "--status", "--at-least"),
}


def _condition_of(chosen: dict[str, dict[str, Any]], statuses: list[str]) -> dict[str, Any]:
    """The condition of the deprecated form. UsageError unless its options imply one kind."""
    if len(chosen) != 1:
        raise base.UsageError("A rule has one kind. `featurewatch alert rule create --help` lists the kinds.")
    ((kind, values),) = chosen.items()
    if kind == "status_count":
        if len(statuses) != 1:
            raise base.UsageError("--at-least counts the features of one status. Give --status once.")
        return {"kind": kind, "status": statuses[0], **values}
    if statuses and "statuses" not in KINDS[kind].model_fields:
        raise base.UsageError(f"A rule of the kind {kind} has no statuses. Omit --status.")
    return {"kind": kind, **values, **({"statuses": statuses} if statuses else {})}


def _command_line(name: str, condition: dict[str, Any], family: str | None) -> str:
    """The command for a rule."""
    words = ["featurewatch", "alert", "rule", "create", condition["kind"].replace("_", "-"), name]
    words += ["--family", family] if family else []
    for parameter in parameters(KINDS[condition["kind"]]):
        values = condition.get(parameter.name, [])
        for value in values if isinstance(values, list) else [values]:
            words += [f"--{parameter.one.replace('_', '-')}", str(value)]
    return shlex.join(words)
