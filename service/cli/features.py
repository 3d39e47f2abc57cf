"""`featurewatch features`, `feature`, `diff`, `lineage`."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Annotated, Any

import typer

from featurewatch.service.cli import base, complete, draw, findings
from featurewatch.service.cli.arguments import Family, FeatureId, Limit, MaxQ, MinChange, checkpoint_option
from featurewatch.service.cli.base import AsJson
from featurewatch.service.cli.command import Table, command
from featurewatch.service.client import Client, types
from featurewatch.service.client.wire import PAGE_LIMIT
from featurewatch.service.kit.text import plain
from featurewatch.service.verdicts.figures import Figure, View, shown_in

app = typer.Typer()

_KINDS = ("carried", "retired", "split", "merged", "new")

Statuses = Annotated[
    list[str] | None,
    typer.Option("--status", help="Only this verdict. May be repeated.", autocompletion=complete.statuses),
]

PlacesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--places",
        help="Only features that are active in these places, compared with the baseline. May be repeated.",
        autocompletion=complete.places,
    ),
]


def what(row: Any) -> str:
    """What a feature is about: its label, or else the automatic one."""
    return plain(row["label"] or "") or plain(row["auto_label"] or "")


def _where(example: Any) -> str:
    """An example on one line, with the token in ⟦ ⟧."""
    if example["token"] is None:
        return f"document {example['document']}, position {example['position']}"
    text = f"{example['text_before'] or ''}⟦{example['token']}⟧{example['text_after'] or ''}"
    return " ".join(text.split())


def _figures(view: View, *, intervals: Sequence[str]) -> dict[str, Callable[[Any], Any]]:
    """Columns of the figures in a table. intervals: figures that are shown with their intervals."""

    def cell(figure: Figure) -> Callable[[Any], Any]:
        if not figure.ends:
            return lambda row: row[figure.name]
        return lambda row: base.ratio(row[figure.name], row[f"{figure.name}_ci"] if figure.name in intervals else None)

    return {figure.heading: cell(figure) for figure in shown_in(view)}


_LISTED = _figures("list", intervals=("projection_ratio",))
_COURSE = _figures("course", intervals=("projection_ratio", "strength_ratio"))
FEATURES = Table(
    ("feature", "status", "places", "was", *_LISTED, "successors", "what"),
    {
        "feature": "id",
        "was": "previous_status",
        **_LISTED,
        "successors": lambda row: [successor["id"] for successor in row["successors"]],
        "what": what,
    },
    empty="No matching features.",
    wraps=("what", "successors"),
    optional=("firings", "strength", "was", "lost", "rate", "gained", "q"),
)
TRAJECTORY = Table(
    ("checkpoint", "status", "places", *_COURSE, "successors"),
    {
        **_COURSE,
        "successors": lambda point: [f"{successor['id']} {successor['kind']}" for successor in point["successors"]],
    },
    empty="No verdicts yet.",
    optional=("readability", "strength", "firings", "lost", "gained", "rate"),
)
SOURCES = Table(
    ("checkpoint", "hook_point", "readability", "strength", "projection", "cosine", "against"),
    {
        "projection": lambda row: base.ratio(row["projection_ratio"], row["projection_ratio_ci"]),
        "cosine": "direction_cosine",
        "against": "paired_with",
    },
    optional=("against", "cosine"),
)
LINEAGE = Table(
    ("generation", "checkpoint", "kind", "from", "to", "score"),
    {"from": "old", "to": "new"},
    empty="No re-fits yet.",
)
EXAMPLES = Table(("activation", "where"), {"where": _where})


@command(app, "features", FEATURES)
def list_features(
    client: Client,
    family: Family,
    checkpoint: Annotated[str | None, checkpoint_option("Verdicts in this checkpoint; default: the newest.")] = None,
    baseline: Annotated[str | None, checkpoint_option("Compare with this checkpoint; default: its parent.")] = None,
    status: Statuses = None,
    places: PlacesOption = None,
    q: Annotated[str | None, typer.Option("--search", "-q", help="Search in labels and top tokens.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only features with this tag.")] = None,
    watched: Annotated[bool | None, typer.Option(help="Only watched features, or only unwatched ones.")] = None,
    min_change: MinChange = None,
    max_q: MaxQ = None,
    sort: Annotated[
        str | None,
        typer.Option(
            help="change (default), q_value, projection_ratio or another measurement, id, or least_change: the "
            "smallest change within the confidence interval."
        ),
    ] = None,
    limit: Limit = 50,
) -> Iterator[types.FeatureRow]:
    """List features with their verdicts, largest change first."""
    rows = client.features(
        family,
        checkpoint=checkpoint,
        baseline=baseline,
        status=status or (),
        places=places or (),
        q=q,
        tag=tag,
        watched=watched,
        min_change=min_change,
        max_q=max_q,
        sort=sort,
    )
    return islice(rows, limit or None)


@app.command()
def diff(
    family: Family,
    from_: Annotated[
        str, typer.Argument(metavar="FROM", help="Checkpoint to compare with.", autocompletion=complete.checkpoints)
    ],
    to: Annotated[str, typer.Argument(metavar="TO", help="Checkpoint to judge.", autocompletion=complete.checkpoints)],
    status: Statuses = None,
    places: PlacesOption = None,
    min_change: MinChange = None,
    max_q: MaxQ = None,
    rows: Annotated[
        bool, typer.Option("--rows", help="Also list the features. Implied by --status and --places.")
    ] = False,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """Compare any two checkpoints: what changed, how certain that is, and which features could not be judged."""
    query: dict[str, Any] = {"status": status or (), "places": places or (), "min_change": min_change, "max_q": max_q}
    with base.connect() as client:
        comparison = client.compare(family, from_, to, **query, limit=min(limit or PAGE_LIMIT, PAGE_LIMIT))
        if comparison["next_cursor"] and not 0 < limit <= PAGE_LIMIT:
            data = list(islice(client.diff(family, from_, to, **query), limit or None))
            comparison |= {"data": data, "next_cursor": None}
    if as_json:
        return base.show_json(comparison)
    findings.show(comparison, f"{family}: {to} against {from_}")
    if rows or status or places:
        base.out.print()
        FEATURES(comparison["data"])
    return None


@command(app, "lineage", LINEAGE)
def lineage(
    client: Client,
    family: Family,
    generation: Annotated[int | None, typer.Option(help="Only the re-fit to this generation.", min=1)] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="carried, retired, split, merged or new.", autocompletion=complete.words(*_KINDS)),
    ] = None,
    limit: Limit = 50,
) -> Iterator[types.LineageLink]:
    """List what happened to the features in re-fits: which kept their ids, and what happened to the others."""
    return islice(client.lineage(family, generation=generation, kind=kind), limit or None)


_FIELDS = (
    "id", "label", "auto_label", "model_label", "model_label_by", "model_label_score", "model_label_score_ci", "tags",
    "watched", "top_tokens", "promoted_tokens", "born_in", "origin", "generation",
    "retired_in",
)  # fmt: skip


@app.command("feature")
def show_feature(
    family: Family,
    feature: FeatureId,
    label: Annotated[str | None, typer.Option(help='Set the label; "" removes it.')] = None,
    tag: Annotated[list[str] | None, typer.Option(help='Replace the tags; "" removes them. May be repeated.')] = None,
    watch: Annotated[
        bool | None, typer.Option("--watch/--no-watch", help="Watch the feature, or stop watching it.")
    ] = None,
    sources: Annotated[
        bool, typer.Option("--sources", help="Also show how well each hook point of each checkpoint carries it.")
    ] = False,
    examples: Annotated[int, typer.Option(help="Number of examples to show.", min=0, max=100)] = 5,
    as_json: AsJson = False,
) -> None:
    """Show a feature: its trajectory, and examples of where it fires. Options can label, tag or watch it first."""
    with base.connect() as client:
        if label is not None or tag is not None or watch is not None:
            row = client.update_feature(family, feature, label=label, tags=_tags(tag), watched=watch)
        else:
            row = client.feature(family, feature)
        points = client.trajectory(family, feature)
        passages = client.examples(family, feature, limit=examples) if examples else []
        readings = client.sources(family, feature) if sources else []
    if as_json:
        document = {"feature": row, "trajectory": points, "examples": passages}
        return base.show_json(document | ({"sources": readings} if sources else {}))
    base.show_fields([*((name, row.get(name)) for name in _FIELDS), ("course", draw.course(points))])
    base.out.print()
    TRAJECTORY(points)
    if sources:
        _show_sources(readings)
    if row.get("lineage"):
        base.out.print()
        LINEAGE(row["lineage"])
    if passages:
        base.out.print()
        EXAMPLES(passages)
    return None


def _tags(tags: list[str] | None) -> list[str] | None:
    return None if tags is None else [tag for tag in tags if tag]  # `--tag ""`: none


def _show_sources(readings: list[Any]) -> None:
    """A line that names the best hook point of each checkpoint, and a table of all hook points."""
    best = [f"at {reading['best']} in {reading['checkpoint']}" for reading in readings if reading["best"]]
    base.out.print()
    base.out.print(f"best {', '.join(best)}" if best else "not read anywhere yet", highlight=False)
    SOURCES([reading | source for reading in readings for source in reading["sources"]])
