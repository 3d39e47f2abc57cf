"""`featurewatch dependencies`."""

from typing import Annotated, Any

import typer

from featurewatch.service.cli import base, complete, progress
from featurewatch.service.cli.base import AsJson
from featurewatch.service.cli.checkpoints import Family, Timeout, end_as
from featurewatch.service.cli.features import FeatureId
from featurewatch.service.client import ApiError
from featurewatch.service.client.types import AnswerEffect, Dependencies, DependencyComparison

Method = Annotated[
    str | None,
    typer.Option(
        help="gradient, relp or integrated; default: what was used last.",
        autocompletion=complete.words("gradient", "relp", "integrated"),
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add this command to the main one."""
    app.command()(dependencies)


def dependencies(
    family: Family,
    feature: FeatureId,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="In this one; default: where it was looked at last.", autocompletion=complete.checkpoints),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Compare with this one: what was gained, lost, changed.", autocompletion=complete.checkpoints
        ),
    ] = None,
    method: Method = None,
    find: Annotated[bool, typer.Option("--find", help="Find them (again) first; needs --checkpoint.")] = False,
    positions: Annotated[int | None, typer.Option(help="With --find: where it fires, at most so many.", min=20)] = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Show what a feature is computed from, what it does to the next token, and whether it was rewired."""
    if find and checkpoint is None:
        raise base.UsageError("--find reads the model of one checkpoint; name it with --checkpoint")
    with base.connect() as client:
        if find:
            run = client.find_dependencies(family, str(checkpoint), [feature], method=method, positions=positions)
            run = progress.follow(client, run["id"], timeout)
            if run["state"] != "succeeded":
                return end_as(run)
        try:
            found = client.dependencies(family, feature, checkpoint=checkpoint, baseline=baseline, method=method)
        except ApiError as error:
            if error.code != "no-dependencies":
                raise
            where = error.detail.partition(";")[0]  # the rest is the API's way to have them found
            command = f"featurewatch dependencies {family} {feature} --find --checkpoint NAME"
            raise base.UsageError(f"{where}; `{command}` finds them") from error
    if as_json:
        return base.show_json(found)
    return _show(found)


def _of_answers(one: AnswerEffect) -> str:
    change = base.ratio(one["ablate"], one["ablate_ci"])
    rest = "" if one["effective"] else ", no more than random directions"
    return f"margin {one['margin']:+.2f}; without the feature {change}{rest}"


def _show(found: Dependencies) -> None:
    graph, effect = found["graph"], found["effect"]
    answers = [(f"answers of {one['signature']}", _of_answers(one)) for one in (effect["answers"] if effect else [])]
    base.show_fields(
        [
            ("feature", f"{found['feature']} at {found['hook_point']} in {found['checkpoint']}"),
            ("method", f"{found['method']} over {found['positions']:,} positions"),
            ("value", graph["value"]),
            ("effect", effect and effect["text"]),
            *answers,
        ]
    )
    base.out.print()
    columns: list[tuple[str, Any]] = [
        ("FROM", lambda edge: edge["feature"]),
        ("AT", lambda edge: edge["hook_point"]),
        ("GIVES", lambda edge: base.ratio(edge["weight"], edge["ci"])),
        ("Q", lambda edge: edge["q"]),
    ]
    base.show_rows(graph["edges"], columns, empty="No earlier feature gives more than the noise.")
    for source in graph["sources"]:
        base.say(
            f"{source['hook_point']}: features {source['features']:.2f}, error {source['error']:.2f}, bias "
            f"{source['bias']:.2f}, tokens without a code {source['uncoded']:.2f}"
        )
    if graph["tokens"]:
        base.out.print()
        words: list[tuple[str, Any]] = [
            ("TOKEN", lambda edge: repr(edge["token"])[1:-1]),
            ("GIVES", lambda edge: base.ratio(edge["weight"], edge["ci"])),
        ]
        base.show_rows(graph["tokens"], words, empty="")
    if found["comparison"] is not None:
        _show_comparison(found["comparison"])


def _show_comparison(compared: DependencyComparison) -> None:
    base.out.print()
    word = {True: "rewired", False: "not rewired", None: f"cannot say: {compared['why_not']}"}[compared["rewired"]]
    base.out.print(f"against {compared['baseline']}: {word}", markup=False, highlight=False)
    rows = [{"kind": kind, **edge} for kind in ("lost", "gained", "changed") for edge in compared[kind]]
    columns: list[tuple[str, Any]] = [
        ("EDGE", lambda row: row["kind"]),
        ("FROM", lambda row: row["feature"]),
        ("AT", lambda row: row["hook_point"]),
        ("BEFORE", lambda row: row["before"]),
        ("AFTER", lambda row: row["after"]),
        ("Q", lambda row: row["q"]),
    ]
    base.show_rows(rows, columns, empty="No edge changed.")
