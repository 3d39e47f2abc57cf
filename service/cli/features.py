"""`featurewatch features`, `feature`, `diff`, `lineage`."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Annotated, Any

import typer

from featurewatch.service.cli import base, complete, draw, told
from featurewatch.service.cli.base import AsJson
from featurewatch.service.cli.checkpoints import Family
from featurewatch.service.cli.told import MaxQ, MinChange
from featurewatch.service.client.types import FeatureRow
from featurewatch.service.features.words import plain
from featurewatch.service.verdicts.figures import Figure, View, shown_in

_PAGE = 500
"""Most rows of one answer of the API."""

Statuses = Annotated[
    list[str] | None,
    typer.Option("--status", help="Only these verdicts. May be repeated.", autocompletion=complete.statuses),
]
Limit = Annotated[int, typer.Option(help="Most rows; 0: all.", min=0)]
FeatureId = Annotated[str, typer.Argument(help="Id of the feature, e.g. F42.", autocompletion=complete.features)]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the main one."""
    app.command("features")(list_features)
    app.command("feature")(show_feature)
    app.command()(diff)
    app.command()(lineage)


def list_features(
    family: Family,
    checkpoint: Annotated[
        str | None, typer.Option(help="Verdicts of this one; default: the newest.", autocompletion=complete.checkpoints)
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Against this one; default: its parent.", autocompletion=complete.checkpoints)
    ] = None,
    status: Statuses = None,
    q: Annotated[str | None, typer.Option("--search", "-q", help="In labels and top tokens.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only those with this tag.")] = None,
    watched: Annotated[bool | None, typer.Option(help="Only those that are watched, or are not.")] = None,
    min_change: MinChange = None,
    max_q: MaxQ = None,
    sort: Annotated[
        str | None,
        typer.Option(
            help="change (default), q_value, projection_ratio or another measurement, id, or least_change: by the "
            "smallest change that the interval allows."
        ),
    ] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List features with their verdict, largest change first."""
    with base.connect() as client:
        found = client.features(
            family,
            checkpoint=checkpoint,
            baseline=baseline,
            status=status or (),
            q=q,
            tag=tag,
            watched=watched,
            min_change=min_change,
            max_q=max_q,
            sort=sort,
        )
        rows = list(islice(found, limit or None))
    _show(rows, as_json)


def diff(
    family: Family,
    from_: Annotated[
        str, typer.Argument(metavar="FROM", help="Checkpoint to compare with.", autocompletion=complete.checkpoints)
    ],
    to: Annotated[
        str, typer.Argument(metavar="TO", help="Checkpoint to look at.", autocompletion=complete.checkpoints)
    ],
    status: Statuses = None,
    min_change: MinChange = None,
    max_q: MaxQ = None,
    rows: Annotated[bool, typer.Option("--rows", help="List the features too; with --status they are.")] = False,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """Compare any two checkpoints: what changed, how sure that is, and what could not be judged."""
    query: dict[str, Any] = {"status": status or (), "min_change": min_change, "max_q": max_q}
    with base.connect() as client:
        answer = client.compare(family, from_, to, **query, limit=min(limit or _PAGE, _PAGE))
        if answer["next_cursor"] and not 0 < limit <= _PAGE:
            answer |= {
                "data": list(islice(client.diff(family, from_, to, **query), limit or None)),
                "next_cursor": None,
            }
    if as_json:
        return base.show_json(answer)
    told.show(answer, f"{family}: {to} against {from_}")
    if rows or status:
        base.out.print()
        _show(answer["data"], as_json=False)
    return None


def lineage(
    family: Family,
    generation: Annotated[int | None, typer.Option(help="Only what led to this one; default: all.", min=1)] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="carried, retired, split, merged or new.",
            autocompletion=complete.words("carried", "retired", "split", "merged", "new"),
        ),
    ] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """What re-fits made of the features: which ids were carried, and what became of the others."""
    with base.connect() as client:
        rows = list(islice(client.lineage(family, generation=generation, kind=kind), limit or None))
    if as_json:
        return base.show_json(rows)
    return base.show_rows(rows, _LINK_COLUMNS, empty="No re-fit yet.")


_FIELDS = (
    "id", "label", "auto_label", "model_label", "model_label_by", "model_label_score", "model_label_score_ci", "tags",
    "watched", "top_tokens", "promoted_tokens", "born_in", "origin", "generation",
    "retired_in",
)  # fmt: skip
_LINK_COLUMNS: list[tuple[str, Callable[[Any], Any]]] = [
    ("GENERATION", lambda link: link["generation"]),
    ("CHECKPOINT", lambda link: link["checkpoint"]),
    ("KIND", lambda link: link["kind"]),
    ("FROM", lambda link: link["old"]),
    ("TO", lambda link: link["new"]),
    ("SCORE", lambda link: link["score"]),
]


def _show(rows: list[FeatureRow], as_json: bool) -> None:
    if as_json:
        return base.show_json(rows)
    columns = [
        ("FEATURE", lambda row: row["id"]),
        ("STATUS", lambda row: row["status"]),
        ("WAS", lambda row: row["previous_status"]),
        *_figures("list", intervals=("projection_ratio",)),
        ("SUCCESSORS", lambda row: [item["id"] for item in row["successors"]]),
        ("WHAT", what),
    ]
    optional = ("FIRINGS", "STRENGTH", "WAS", "Q")
    return base.show_rows(rows, columns, empty="No feature fits.", wraps=("WHAT", "SUCCESSORS"), optional=optional)


def _figures(view: View, *, intervals: Sequence[str]) -> list[tuple[str, Callable[[Any], Any]]]:
    """Columns of the figures that a table shows. intervals: figures that are shown with theirs."""

    def cell(figure: Figure) -> Callable[[Any], Any]:
        if not figure.ends:
            return lambda row: row[figure.name]
        return lambda row: base.ratio(row[figure.name], row[f"{figure.name}_ci"] if figure.name in intervals else None)

    return [(figure.heading, cell(figure)) for figure in shown_in(view)]


def what(row: Any) -> str:
    """What a feature is about: its label, else the automatic one."""
    return plain(row["label"] or "") or plain(row["auto_label"] or "")


def show_feature(
    family: Family,
    feature: FeatureId,
    label: Annotated[str | None, typer.Option(help='Give it this label, a text for people; "" takes it away.')] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help='Give it these tags, in place of its own; "" takes them away.')
    ] = None,
    watch: Annotated[bool | None, typer.Option("--watch/--no-watch", help="Watch it, or do not.")] = None,
    sources: Annotated[bool, typer.Option("--sources", help="Show at which hook points it is read, and best.")] = False,
    examples: Annotated[int, typer.Option(help="How many examples to show.", min=0, max=100)] = 5,
    as_json: AsJson = False,
) -> None:
    """Show a feature: its course over the checkpoints, and where it fires. Or label, tag and watch it first."""
    with base.connect() as client:
        if label is not None or tag is not None or watch is not None:
            row = client.update_feature(family, feature, label=label, tags=_tags(tag), watched=watch)
        else:
            row = client.feature(family, feature)
        points = client.trajectory(family, feature)
        shown = client.examples(family, feature, limit=examples) if examples else []
        places = client.sources(family, feature) if sources else []
    if as_json:
        found = {"feature": row, "trajectory": points, "examples": shown}
        return base.show_json(found | ({"sources": places} if sources else {}))
    base.show_fields([*((name, row.get(name)) for name in _FIELDS), ("course", draw.course(points))])
    base.out.print()
    columns = [
        ("CHECKPOINT", lambda point: point["checkpoint"]),
        ("STATUS", lambda point: point["status"]),
        *_figures("course", intervals=("projection_ratio", "strength_ratio")),
        ("SUCCESSORS", lambda point: [f"{item['id']} {item['kind']}" for item in point["successors"]]),
    ]
    optional = ("READABILITY", "STRENGTH", "FIRINGS")
    base.show_rows(points, columns, empty="No verdict yet.", optional=optional)
    if sources:
        _show_sources(places)
    if row.get("lineage"):
        base.out.print()
        base.show_rows(row["lineage"], _LINK_COLUMNS, empty="")
    if shown:
        base.out.print()
        base.show_rows(shown, [("ACTIVATION", lambda e: e["activation"]), ("WHERE", _where)], empty="")
    return None


def _tags(given: list[str] | None) -> list[str] | None:
    return None if given is None else [tag for tag in given if tag]  # `--tag ""`: none


def _show_sources(places: list[Any]) -> None:
    """A line that names the best hook point of each checkpoint, and a row for every one."""
    best = [f"at {place['best']} in {place['checkpoint']}" for place in places if place["best"]]
    base.out.print()
    base.out.print(f"best {', '.join(best)}" if best else "nowhere read yet", highlight=False)
    rows = [place | source for place in places for source in place["sources"]]
    columns: list[tuple[str, Callable[[Any], Any]]] = [
        ("CHECKPOINT", lambda row: row["checkpoint"]),
        ("HOOK POINT", lambda row: row["hook_point"]),
        ("READABILITY", lambda row: row["readability"]),
        ("STRENGTH", lambda row: row["strength"]),
        ("PROJECTION", lambda row: base.ratio(row["projection_ratio"], row["projection_ratio_ci"])),
        ("COSINE", lambda row: row["direction_cosine"]),
        ("AGAINST", lambda row: row["paired_with"]),
    ]
    base.show_rows(rows, columns, empty="", optional=("AGAINST", "COSINE"))


def _where(example: Any) -> str:
    """An example on one line, the token in ⟦ ⟧."""
    if example["token"] is None:
        return f"document {example['document']}, position {example['position']}"
    text = f"{example['text_before'] or ''}⟦{example['token']}⟧{example['text_after'] or ''}"
    return " ".join(text.split())
