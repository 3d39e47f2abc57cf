"""`featurewatch checkpoint list`, `show` and `delete`, and `featurewatch report`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from featurewatch.service.cli import base, complete, findings
from featurewatch.service.cli.arguments import Family, MaxQ, MinChange, Name, checkpoint_option
from featurewatch.service.cli.base import AsJson
from featurewatch.service.cli.command import Table, calls, deletes
from featurewatch.service.client import Client, types
from featurewatch.service.runs.words import seen

app = typer.Typer()
checkpoint_app = typer.Typer(name="checkpoint", help="Checkpoints: register, list, show, delete.", no_args_is_help=True)
app.add_typer(checkpoint_app)

_FORMATS = ("text", "markdown", "html", "json")


CHECKPOINTS = Table(
    ("name", "state", "parent", "activations", "fvu", "registered", "uri"),
    {
        "activations": lambda row: {True: "kept", False: "removed"}.get(row["activations_kept"]),
        "fvu": lambda row: (row["quality"] or {}).get("fvu"),
        "registered": lambda row: base.moment(row["created_at"]),
        "uri": lambda row: row["resolved_uri"] or row["uri"],
    },
    empty="No checkpoints yet. Register one with `featurewatch checkpoint register`.",
    optional=("activations", "registered"),
)
Reparent = Annotated[bool, typer.Option("--reparent", help="Move its children to its parent.")]


def _show_checkpoint(row: types.Checkpoint) -> None:
    run = row["run"]
    newest = run and f"{run['id']} {run['kind']} {run['state']}"
    base.show_fields([*((key, value) for key, value in row.items() if key != "run"), ("run", newest)])


calls(checkpoint_app, "list", Client.checkpoints, CHECKPOINTS, family=Family)
calls(checkpoint_app, "show", Client.checkpoint, _show_checkpoint, family=Family, name=Name)
deletes(
    checkpoint_app,
    Client.delete_checkpoint,
    "Delete the checkpoint {name} of {family} with its verdicts, runs and alerts?",
    family=Family,
    name=Name,
    reparent=Reparent,
)


@app.command()
def report(
    family: Family,
    name: Name,
    baseline: Annotated[str | None, checkpoint_option("Checkpoint to compare with; default: its parent.")] = None,
    min_change: MinChange = None,
    max_q: MaxQ = None,
    form: Annotated[
        str,
        typer.Option("--format", help="text, markdown, html or json.", autocompletion=complete.words(*_FORMATS)),
    ] = "text",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Report what changed in a checkpoint, how certain that is, and which features could not be judged."""
    form = "json" if as_json else form
    if form not in _FORMATS:
        raise base.UsageError(f"unknown format {form!r}; choose text, markdown, html or json")
    query: dict[str, Any] = {"baseline": baseline, "min_change": min_change, "max_q": max_q}
    with base.connect() as client:
        if form == "text" and not output:
            document = client.report(family, name, **query)
            against = f" against {document['baseline']}" if document["baseline"] else ""
            return findings.show(document, f"{family}: {name}{against}")
        if form == "json":
            text = json.dumps(client.report(family, name, **query), indent=2)
        else:
            text = client.report_text(family, name, format="html" if form == "html" else "markdown", **query)
    if not output:
        return typer.echo(seen(text))
    with base.writing(output):
        output.write_text(text + "\n", encoding="utf-8")
    return None
