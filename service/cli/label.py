"""`featurewatch label`."""

from typing import Annotated

import typer

from featurewatch.service.cli import base, complete, progress
from featurewatch.service.cli.base import AsJson
from featurewatch.service.cli.checkpoints import Family, Timeout, end_as


def add_to(app: typer.Typer) -> None:
    """Add this command to the main one."""
    app.command()(label)


def label(
    family: Family,
    feature: Annotated[
        list[str] | None,
        typer.Argument(
            help="Ids of the features; default: those that are watched or changed, and have none yet.",
            autocompletion=complete.features,
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="By its code; default: the newest that is judged.", autocompletion=complete.checkpoints),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the result and show progress.")] = True,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Have features labelled by the model that the server's settings name, each label with a score on held-out
    examples. Passages of the probe corpus go there. Labels are text for people: no verdict uses them."""
    with base.connect() as client:
        run = client.label(family, features=feature or None, checkpoint=checkpoint)
        if wait:
            run = progress.follow(client, run["id"], timeout)
    result = run["result"]
    if as_json:
        base.show_json(run)
    elif result is not None:
        base.say(f"{result['labelled']:,} labelled by {result['model']}, {result['scored']:,} of them scored")
        columns = [
            ("NOT LABELLED", lambda row: row["feature"]),
            ("WHY", lambda row: row["code"]),
            ("", lambda row: row["detail"]),
        ]
        if result["failed"]:
            base.show_rows(result["failed"], columns, empty="")
    elif not wait:
        base.out.print(f"features of {family} are being labelled: run {run['id']} is {run['state']}", markup=False)
    if wait:
        end_as(run)
