"""`featurewatch family`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from featurewatch.service.cli import base
from featurewatch.service.cli.arguments import Family
from featurewatch.service.cli.command import Table, calls, command, deletes, fields
from featurewatch.service.client import Client, types
from featurewatch.service.client.wire import given

app = typer.Typer(name="family", help="Families: models whose features are tracked together.", no_args_is_help=True)


@command(app, "create", fields())
def create_family(
    client: Client,
    name: Annotated[str, typer.Argument(help="Name of the family: letters, digits, dots and dashes.")],
    hook_point: Annotated[list[str], typer.Option(help="Hook point to read, e.g. resid_post.12. May be repeated.")],
    corpus: Annotated[str | None, typer.Option(help="URI of the probe corpus; default: the built-in one.")] = None,
    documents: Annotated[int | None, typer.Option(help="Maximum number of documents.", min=1)] = None,
    context: Annotated[int | None, typer.Option(help="Maximum number of tokens per document.", min=2)] = None,
    features: Annotated[int | None, typer.Option(help="Features of the first dictionary.", min=1)] = None,
    k: Annotated[int | None, typer.Option(help="Average number of features active at a position.", min=1)] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of a full fit.", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Positions per step.", min=16)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate of the fit.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the fit.")] = None,
    policy: Annotated[Path | None, typer.Option(help="JSON file with the thresholds of the verdicts.")] = None,
) -> types.Family:
    """Create a family. Options that are omitted take the service's defaults."""
    corpus_options = given(uri=corpus, max_documents=documents, context_length=context)
    crosscoder = given(
        n_features=features, k=k, steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed
    )
    return client.create_family(
        name,
        hook_point,
        corpus=corpus_options or None,
        crosscoder=crosscoder or None,
        policy=_read_json(policy) if policy else None,
    )


FAMILIES = Table(
    ("name", "hook_points", "features", "generation", "created"),
    {"features": "n_features", "created": lambda row: base.moment(row["created_at"])},
    empty="No families yet. Create one with `featurewatch family create`.",
    wraps=("hook_points",),
)
calls(app, "list", Client.families, FAMILIES)
calls(app, "show", Client.family, fields(), name=Family)
deletes(
    app,
    Client.delete_family,
    "Delete the family {name} with all its checkpoints, features, runs and artifacts?",
    name=Family,
)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise base.UsageError(f"cannot read {path} as JSON: {error}") from error
    if not isinstance(value, dict):
        raise base.UsageError(f"{path} does not contain a JSON object")
    return value
