"""Arguments and options that several commands have."""

from typing import Annotated, Any

import typer

from featurewatch.service.cli import complete

Family = Annotated[str, typer.Argument(help="Name of the family.", autocompletion=complete.families)]
Name = Annotated[str, typer.Argument(help="Name of the checkpoint.", autocompletion=complete.checkpoints)]
FeatureId = Annotated[str, typer.Argument(help="Id of the feature, e.g. F42.", autocompletion=complete.features)]
RunId = Annotated[str, typer.Argument(help="Id of the run, run_...", autocompletion=complete.runs)]


def checkpoint_option(help: str) -> Any:
    """An option that takes the name of a checkpoint."""
    return typer.Option(help=help, autocompletion=complete.checkpoints)


OfFamily = Annotated[str | None, typer.Option(help="Show only this family.", autocompletion=complete.families)]
Limit = Annotated[int, typer.Option(help="Maximum number of rows; 0 for all.", min=0)]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the result and show progress.")]
Timeout = Annotated[float | None, typer.Option(help="Maximum seconds to wait; exit code 3 after that.", min=0)]
MinChange = Annotated[
    float | None, typer.Option(help="Minimum size of the change, in factors of two: 1 means halved or doubled.", min=0)
]
MaxQ = Annotated[
    float | None,
    typer.Option("--max-q", help="Maximum q-value. New features have none and are omitted.", min=0, max=1),
]
