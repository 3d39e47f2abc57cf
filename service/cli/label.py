"""`featurewatch label`."""

from typing import Annotated

import typer

from featurewatch.service.cli import base, complete, progress
from featurewatch.service.cli.arguments import Family, Timeout, Wait, checkpoint_option
from featurewatch.service.cli.base import AsJson
from featurewatch.service.cli.command import Table

app = typer.Typer()

FAILURES = Table(("not_labelled", "why", ""), {"not_labelled": "feature", "why": "code", "": "detail"})


@app.command()
def label(
    family: Family,
    feature: Annotated[
        list[str] | None,
        typer.Argument(
            help="Ids of the features; default: watched or changed features without a label.",
            autocompletion=complete.features,
        ),
    ] = None,
    checkpoint: Annotated[
        str | None, checkpoint_option("Checkpoint whose code to use; default: the newest judged.")
    ] = None,
    wait: Wait = True,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Label features with the model in the server's settings, and score each label on held-out examples.

    Passages of the probe corpus are sent to that model. Labels are for people: no verdict uses them.
    """
    with base.connect() as client:
        run = client.label(family, features=feature or None, checkpoint=checkpoint)
        if wait:
            run = progress.follow(client, run["id"], timeout)
    result = run["result"]
    if as_json:
        base.show_json(run)
    elif result is not None:
        base.say(f"{result['model']} labelled {result['labelled']:,} features; {result['scored']:,} labels were scored")
        if result["failed"]:
            FAILURES(result["failed"])
    elif not wait:
        base.out.print(f"labelling features of {family}: run {run['id']} is {run['state']}", markup=False)
    if wait:
        progress.exit_unless_succeeded(run)
