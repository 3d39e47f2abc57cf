"""`featurewatch dependencies`."""

from typing import Annotated, Any

import typer

from featurewatch.service.cli import base, complete, progress
from featurewatch.service.cli.arguments import Family, FeatureId, Timeout, checkpoint_option
from featurewatch.service.cli.base import AsJson
from featurewatch.service.cli.command import Table
from featurewatch.service.client import ApiError
from featurewatch.service.client.types import AnswerEffect, Dependencies, DependencyComparison

app = typer.Typer()

Method = Annotated[
    str | None,
    typer.Option(
        help="gradient, relp or integrated; default: the one used last.",
        autocompletion=complete.words("gradient", "relp", "integrated"),
    ),
]


@app.command()
def dependencies(
    family: Family,
    feature: FeatureId,
    checkpoint: Annotated[str | None, checkpoint_option("In this checkpoint; default: the one analysed last.")] = None,
    baseline: Annotated[
        str | None, checkpoint_option("Compare with this checkpoint: edges gained, lost and changed.")
    ] = None,
    method: Method = None,
    find: Annotated[bool, typer.Option("--find", help="Compute the dependencies first; needs --checkpoint.")] = False,
    positions: Annotated[int | None, typer.Option(help="With --find: maximum number of positions.", min=20)] = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Show what a feature is computed from, its effect on the next token, and whether it was rewired."""
    if find and checkpoint is None:
        raise base.UsageError("--find runs the model of a checkpoint; add --checkpoint")
    with base.connect() as client:
        if find:
            run = client.find_dependencies(family, str(checkpoint), [feature], method=method, positions=positions)
            progress.exit_unless_succeeded(progress.follow(client, run["id"], timeout))
        try:
            document = client.dependencies(family, feature, checkpoint=checkpoint, baseline=baseline, method=method)
        except ApiError as error:
            if error.code != "no-dependencies":
                raise
            where = error.detail.rpartition(". ")[0]  # the rest says how to compute them with the API
            command = f"featurewatch dependencies {family} {feature} --find --checkpoint NAME"
            raise base.UsageError(f"{where}; compute them with `{command}`") from error
    if as_json:
        return base.show_json(document)
    return _show(document)


def _of_answers(answers: AnswerEffect) -> str:
    change = base.ratio(answers["ablate"], answers["ablate_ci"])
    rest = "" if answers["effective"] else ", no more than random directions"
    return f"margin {answers['margin']:+.2f}; without the feature {change}{rest}"


def _weight(edge: Any) -> str:
    return base.ratio(edge["weight"], edge["ci"])


FEATURES = Table(
    ("from", "at", "gives", "q"),
    {"from": "feature", "at": "hook_point", "gives": _weight},
    empty="No earlier feature contributes more than the noise.",
)
TOKENS = Table(("token", "gives"), {"token": lambda edge: repr(edge["token"])[1:-1], "gives": _weight})
CHANGES = Table(
    ("edge", "from", "at", "before", "after", "q"),
    {"edge": "kind", "from": "feature", "at": "hook_point"},
    empty="No edges changed.",
)


def _show(document: Dependencies) -> None:
    graph, effect = document["graph"], document["effect"]
    answers = effect["answers"] if effect else []
    base.show_fields(
        [
            ("feature", f"{document['feature']} at {document['hook_point']} in {document['checkpoint']}"),
            ("method", f"{document['method']} over {document['positions']:,} positions"),
            ("value", graph["value"]),
            ("effect", effect and effect["text"]),
            *((f"answers of {signature['signature']}", _of_answers(signature)) for signature in answers),
        ]
    )
    base.out.print()
    FEATURES(graph["edges"])
    for source in graph["sources"]:
        base.say(
            f"{source['hook_point']}: features {source['features']:.2f}, error {source['error']:.2f}, bias "
            f"{source['bias']:.2f}, tokens without a code {source['uncoded']:.2f}"
        )
    if graph["tokens"]:
        base.out.print()
        TOKENS(graph["tokens"])
    if document["comparison"] is not None:
        _show_comparison(document["comparison"])


def _show_comparison(comparison: DependencyComparison) -> None:
    base.out.print()
    verdict = {True: "rewired", False: "not rewired", None: f"no verdict: {comparison['why_not']}"}
    text = f"against {comparison['baseline']}: {verdict[comparison['rewired']]}"
    base.out.print(text, markup=False, highlight=False)
    CHANGES([{"kind": kind, **edge} for kind in ("lost", "gained", "changed") for edge in comparison[kind]])
