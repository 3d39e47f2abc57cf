"""`featurewatch signature`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from featurewatch.service.cli import base, complete, draw, progress
from featurewatch.service.cli.arguments import Family, Timeout, checkpoint_option
from featurewatch.service.cli.base import AsJson
from featurewatch.service.cli.command import Table, calls, deletes
from featurewatch.service.client import Client, types
from featurewatch.service.client.wire import given

app = typer.Typer(name="signature", help="Signatures: concepts defined by contrast sets.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the signature.", autocompletion=complete.signatures)]


@app.command("create")
def create(
    family: Family,
    name: Name,
    contrast: Annotated[
        str,
        typer.Argument(
            help="A local JSONL file, or the file:// URI of one on the server, with rows "
            '{"text": ..., "label": 0 or 1} or {"positive": ..., "negative": ...}.'
        ),
    ],
    description: Annotated[str | None, typer.Option(help="What the signature stands for.")] = None,
    baseline: Annotated[
        str | None, checkpoint_option("Checkpoint to choose features in; default: the newest judged.")
    ] = None,
    position: Annotated[
        str | None,
        typer.Option(help="last (default), answer or mean.", autocompletion=complete.words("last", "answer", "mean")),
    ] = None,
    template: Annotated[bool, typer.Option(help="Wrap texts in the model's chat template.")] = True,
    hook_point: Annotated[
        list[str] | None, typer.Option(help="Hook point of the family; default: all. May be repeated.")
    ] = None,
    features: Annotated[int | None, typer.Option(help="Maximum number of features; default: 16.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the split into halves.", min=0)] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until all checkpoints are read.")] = True,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Track a concept, defined by a contrast set, in all judged checkpoints and in every new one."""
    settings = given(position=position, hook_points=hook_point or None, features=features, seed=seed)
    source: dict[str, Any] = {"uri": contrast} if "://" in contrast else {"rows": _rows(Path(contrast))}
    with base.connect() as client:
        created = client.create_signature(
            family,
            name,
            description=description,
            baseline=baseline,
            settings=settings | {"template": template},
            **source,
        )
        if not wait:
            text = f"Created {name}. {len(created['runs'])} runs are reading it."
            return base.show_json(created) if as_json else base.say(text)
        for run in created["runs"]:
            progress.exit_unless_succeeded(progress.follow(client, run["id"], timeout))
        course = client.signature_trajectory(family, name)
    return base.show_json(course) if as_json else _show(course)


SIGNATURES = Table(
    ("name", "rows", "baseline", "features", "newest", "status"),
    {
        "features": lambda row: None if row["features"] is None else len(row["features"]),
        "newest": lambda row: (row["newest"] or {}).get("checkpoint"),
        "status": lambda row: (row["newest"] or {}).get("status"),
    },
    empty="No signatures yet. Create one with `featurewatch signature create`.",
)
calls(app, "list", Client.signatures, SIGNATURES, family=Family)
deletes(
    app,
    Client.delete_signature,
    "Delete the signature {name} of {family} with its readings?",
    family=Family,
    name=Name,
)


def _show(course: types.SignatureTrajectory) -> None:
    # Imported here: the schemas import FastAPI, without which the other commands start in half the time.
    from featurewatch.service.signatures.describe import sentence  # noqa: PLC0415
    from featurewatch.service.signatures.schemas import ReadingView  # noqa: PLC0415

    points = [ReadingView.model_validate(point) for point in course["points"]]
    columns = [
        ("CHECKPOINT", lambda point: point.checkpoint),
        ("STATUS", lambda point: point.status),
        ("READING", lambda point: sentence(course["baseline"], point)),
        ("CARRIED BY", lambda point: list(dict.fromkeys(carrier.feature for carrier in point.carriers))[:5]),
    ]
    base.show_rows(points, columns, empty="No readings yet.", wraps=("READING",), optional=("CARRIED BY",))
    if len(points) > 1:
        base.say(f"strength {draw.sparkline([point.figures.strength_ratio for point in points])}")
    if course["turns_at"] is not None:
        base.say(f"It turns at {course['turns_at']}.")


calls(app, "show", Client.signature_trajectory, _show, family=Family, name=Name)


def _rows(path: Path) -> list[Any]:
    """Rows of a JSONL file on this machine."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise base.UsageError(f"cannot read the contrast set: {error}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise base.UsageError(f"{path}, line {number} is not valid JSON: {error}") from error
    return rows
