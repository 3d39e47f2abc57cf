"""`featurewatch signature`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from featurewatch.service.cli import base, complete, draw, progress
from featurewatch.service.cli.base import AsJson
from featurewatch.service.cli.checkpoints import Family, Timeout, end_as
from featurewatch.service.client.types import SignatureTrajectory
from featurewatch.service.client.wire import given

signature_app = typer.Typer(help="Signatures: concepts that a contrast set shows.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the signature.", autocompletion=complete.signatures)]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the main one."""
    app.add_typer(signature_app, name="signature")


@signature_app.command("create")
def create(
    family: Family,
    name: Name,
    contrast: Annotated[
        str,
        typer.Argument(
            help='JSONL file on this machine, or its file:// URI on the server: rows {"text": ..., "label": 0 or 1} or '
            '{"positive": ..., "negative": ...}.'
        ),
    ],
    description: Annotated[str | None, typer.Option(help="What it stands for.")] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Where features are chosen; default: the newest judged.", autocompletion=complete.checkpoints
        ),
    ] = None,
    position: Annotated[
        str | None,
        typer.Option(help="last (default), answer or mean.", autocompletion=complete.words("last", "answer", "mean")),
    ] = None,
    template: Annotated[bool, typer.Option(help="Put texts into the model's chat template.")] = True,
    hook_point: Annotated[
        list[str] | None, typer.Option(help="Of the family's; default: all. May be repeated.")
    ] = None,
    features: Annotated[int | None, typer.Option(help="Features that are chosen at most; default 16.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Of the halves of the rows.", min=0)] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is read everywhere.")] = True,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Watch a concept that a contrast set shows: in every judged checkpoint, and from now on in each new one."""
    settings = given(position=position, hook_points=hook_point or None, features=features, seed=seed)
    source: dict[str, Any] = {"uri": contrast} if "://" in contrast else {"rows": _rows(Path(contrast))}
    with base.connect() as client:
        made = client.create_signature(
            family,
            name,
            description=description,
            baseline=baseline,
            settings=settings | {"template": template},
            **source,
        )
        if not wait:
            return base.show_json(made) if as_json else base.say(f"{name} is made; {len(made['runs'])} runs read it")
        for run in made["runs"]:
            end_as(progress.follow(client, run["id"], timeout))
        course = client.signature_trajectory(family, name)
    return base.show_json(course) if as_json else _show(course)


@signature_app.command("list")
def list_signatures(family: Family, as_json: AsJson = False) -> None:
    """List the signatures of a family with their newest reading."""
    with base.connect() as client:
        rows = list(client.signatures(family))
    if as_json:
        return base.show_json(rows)
    columns = [
        ("NAME", lambda row: row["name"]),
        ("ROWS", lambda row: row["rows"]),
        ("BASELINE", lambda row: row["baseline"]),
        ("FEATURES", lambda row: None if row["features"] is None else len(row["features"])),
        ("NEWEST", lambda row: (row["newest"] or {}).get("checkpoint")),
        ("STATUS", lambda row: (row["newest"] or {}).get("status")),
    ]
    return base.show_rows(rows, columns, empty="No signature yet; `featurewatch signature create` makes one.")


@signature_app.command("show")
def show(family: Family, name: Name, as_json: AsJson = False) -> None:
    """Show a signature over all checkpoints, and where it turned."""
    with base.connect() as client:
        course = client.signature_trajectory(family, name)
    return base.show_json(course) if as_json else _show(course)


@signature_app.command("delete")
def delete(family: Family, name: Name, yes: base.Yes = False, as_json: AsJson = False) -> None:
    """Delete a signature with its readings. Queued runs that read it alone are cancelled."""
    base.confirm(f"Delete the signature {name} of {family} with its readings?", yes=yes)
    with base.connect() as client:
        client.delete_signature(family, name)
    base.show_json({"deleted": name}) if as_json else base.say(f"{name} is forgotten")


def _show(course: SignatureTrajectory) -> None:
    # Its shapes bring the API's framework along, without which the other commands start in half the time.
    from featurewatch.service.signatures.describe import sentence  # noqa: PLC0415
    from featurewatch.service.signatures.schemas import ReadingView  # noqa: PLC0415

    points = [ReadingView.model_validate(point) for point in course["points"]]
    columns = [
        ("CHECKPOINT", lambda point: point.checkpoint),
        ("STATUS", lambda point: point.status),
        ("READING", lambda point: sentence(course["baseline"], point)),
        ("CARRIED BY", lambda point: list(dict.fromkeys(one.feature for one in point.carriers))[:5]),
    ]
    base.show_rows(points, columns, empty="It has not been read yet.", wraps=("READING",), optional=("CARRIED BY",))
    if len(points) > 1:
        base.say(f"strength {draw.sparkline([point.figures.strength_ratio for point in points])}")
    if course["turns_at"] is not None:
        base.say(f"It turns at {course['turns_at']}.")


def _rows(path: Path) -> list[Any]:
    """Rows of a JSONL file on this machine."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise base.UsageError(f"the contrast set cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise base.UsageError(f"{path}, line {number} is no JSON: {error}") from error
    return rows
