"""`featurewatch calibrate`."""

from typing import Annotated, Any

import typer

from featurewatch.service.cli import base, complete, progress
from featurewatch.service.cli.arguments import Family, Timeout, Wait, checkpoint_option
from featurewatch.service.cli.base import AsJson
from featurewatch.service.cli.command import Table
from featurewatch.service.client.types import CalibrationResult
from featurewatch.service.client.wire import given
from featurewatch.service.families.calibration import NULLS

app = typer.Typer()


@app.command()
def calibrate(
    family: Family,
    checkpoint: Annotated[
        str | None, checkpoint_option("Checkpoint to calibrate on; default: the newest judged.")
    ] = None,
    null: Annotated[
        list[str] | None,
        typer.Option(help=f"Only {', '.join(NULLS)}. May be repeated.", autocompletion=complete.words(*NULLS)),
    ] = None,
    splits: Annotated[int | None, typer.Option(help="Number of random splits for `halves`.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of `halves` and `finetune`.", min=0)] = None,
    steps: Annotated[int | None, typer.Option("--finetune-steps", help="Steps of `finetune`.", min=1)] = None,
    learning_rate: Annotated[float | None, typer.Option("--finetune-rate", help="Learning rate of `finetune`.")] = None,
    wait: Wait = True,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Measure how often the family's thresholds raise a false alarm.

    Judges versions of a checkpoint in which no feature changed: the same weights, rounded weights, halves of the
    documents, a short fine-tune. The family itself is not changed.
    """
    training = given(steps=steps, learning_rate=learning_rate)
    with base.connect() as client:
        calibration = client.calibrate(
            family, checkpoint=checkpoint, nulls=null or None, splits=splits, seed=seed, finetune=training or None
        )
        if wait:
            run = progress.follow(client, calibration["id"], timeout)
            calibration = client.calibration(family, calibration["id"])
    if as_json:
        base.show_json(calibration)
    elif calibration["result"] is not None:
        _show(calibration["result"])
    elif not wait:
        state = f"run {calibration['id']} is {calibration['state']}"
        text = f"calibrating on {calibration['checkpoint']} of {family}: {state}"
        base.out.print(text, markup=False, soft_wrap=True)
    if wait:
        progress.exit_unless_succeeded(run)


def _count(rate: dict[str, Any]) -> str:
    return f"{rate['alarms']:,} of {rate['of']:,}"


def _rate(rate: dict[str, Any]) -> str:
    return f"{_count(rate)} (at most {rate['upper']:.2%})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _spread(quantiles: dict[str, float]) -> str:
    return f"{quantiles['0.1']:.3f} to {quantiles['99.9']:.3f}" if quantiles else "-"


RESULTS = Table(
    (
        "null",
        "alarms_in",
        "features",
        "places",
        "significant",
        "emerged",
        "alerts",
        "ratio_0.1%_to_99.9%",
        "intervals_with_1",
    ),
    {
        "alarms_in": lambda row: _count(row["checkpoints"]),
        "features": lambda row: _count(row["features"]),
        "places": lambda row: _count(row["places"]) if row.get("places") else "-",
        "alerts": lambda row: sum(alert["comparisons"] for alert in row["alerts"]),
        "ratio_0.1%_to_99.9%": lambda row: _spread(row["ratio_quantiles"]),
        "intervals_with_1": lambda row: _percent(row["coverage"]),
    },
    empty="No nulls.",
    optional=("alerts", "emerged", "significant"),
)
GRID = Table(
    ("suppressed_below", "amplified_above", "fdr", "false_alarm_in", "of_features", ""),
    {
        "false_alarm_in": lambda row: _rate(row["checkpoints"]),
        "of_features": lambda row: _rate(row["features"]),
        "": lambda row: "the family's" if row["current"] else "",
    },
    wraps=("false_alarm_in", "of_features"),
)


def _show(result: CalibrationResult) -> None:
    RESULTS([null for null in result["nulls"] if not null["unavailable"]])
    for null in result["nulls"]:
        if null["unavailable"]:
            base.say(f"{null['null']}: not available: {null['unavailable']['detail']}")
        elif "loss_before" in null["settings"]:
            training = null["settings"]
            base.say(
                f"finetune: {training['steps']} steps of {training['optimizer']} at {training['learning_rate']:g}: "
                f"loss {training['loss_before']:.3f} to {training['loss_after']:.3f}, on held-out documents "
                f"{training['held_out_loss_before']:.3f} to {training['held_out_loss_after']:.3f}"
            )
    typer.echo("")
    GRID(result["grid"])
