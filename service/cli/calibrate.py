"""`featurewatch calibrate`."""

from typing import Annotated, Any

import typer

from featurewatch.service.calibrations.kinds import NULLS
from featurewatch.service.cli import base, complete, progress
from featurewatch.service.cli.base import AsJson
from featurewatch.service.cli.checkpoints import Family, Timeout, end_as
from featurewatch.service.client.types import CalibrationResult
from featurewatch.service.client.wire import given


def add_to(app: typer.Typer) -> None:
    """Add this command to the main one."""
    app.command()(calibrate)


def calibrate(
    family: Family,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Which one; default: the newest that is judged.", autocompletion=complete.checkpoints),
    ] = None,
    null: Annotated[
        list[str] | None,
        typer.Option(help=f"Only these: {', '.join(NULLS)}. May be repeated.", autocompletion=complete.words(*NULLS)),
    ] = None,
    splits: Annotated[int | None, typer.Option(help="How often `halves` deals the documents anew.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Of `halves` and `finetune`.", min=0)] = None,
    steps: Annotated[int | None, typer.Option("--finetune-steps", help="Steps of `finetune`.", min=1)] = None,
    learning_rate: Annotated[float | None, typer.Option("--finetune-rate", help="Learning rate of `finetune`.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the result and show progress.")] = True,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """How often do the family's thresholds raise a false alarm? Judges versions of a checkpoint in which no feature
    changed: the same weights again, rounded, halves of the documents, a short fine-tune. Nothing of the family changes.
    """
    training = given(steps=steps, learning_rate=learning_rate)
    with base.connect() as client:
        made = client.calibrate(
            family, checkpoint=checkpoint, nulls=null or None, splits=splits, seed=seed, finetune=training or None
        )
        if wait:
            run = progress.follow(client, made["id"], timeout)
            made = client.calibration(family, made["id"])
    if as_json:
        base.show_json(made)
    elif made["result"] is not None:
        _show(made["result"])
    elif not wait:
        text = f"{made['checkpoint']} of {family} is being calibrated: run {made['id']} is {made['state']}"
        base.out.print(text, markup=False, soft_wrap=True)
    if wait:
        end_as(run)


def _show(result: CalibrationResult) -> None:
    had = [one for one in result["nulls"] if not one["unavailable"]]
    columns = [
        ("NULL", lambda row: row["null"]),
        ("ALARMS IN", lambda row: _count(row["checkpoints"])),
        ("FEATURES", lambda row: _count(row["features"])),
        ("SIGNIFICANT", lambda row: row["significant"]),
        ("EMERGED", lambda row: row["emerged"]),
        ("ALERTS", lambda row: sum(alert["comparisons"] for alert in row["alerts"])),
        ("RATIO 0.1% TO 99.9%", lambda row: _spread(row["ratio_quantiles"])),
        ("INTERVALS WITH 1", lambda row: _percent(row["coverage"])),
    ]
    base.show_rows(had, columns, empty="No null.", optional=("ALERTS", "EMERGED", "SIGNIFICANT"))
    for one in result["nulls"]:
        if one["unavailable"]:
            base.say(f"{one['null']}: not to be had: {one['unavailable']['detail']}")
        elif "loss_before" in one["settings"]:
            made = one["settings"]
            base.say(
                f"finetune: {made['steps']} steps of {made['optimizer']} at {made['learning_rate']:g}: loss "
                f"{made['loss_before']:.3f} to {made['loss_after']:.3f}, on held-out documents "
                f"{made['held_out_loss_before']:.3f} to {made['held_out_loss_after']:.3f}"
            )
    typer.echo("")
    base.show_rows(
        result["grid"],
        [
            ("SUPPRESSED BELOW", lambda row: row["suppressed_below"]),
            ("AMPLIFIED ABOVE", lambda row: row["amplified_above"]),
            ("FDR", lambda row: row["fdr"]),
            ("FALSE ALARM IN", lambda row: _rate(row["checkpoints"])),
            ("OF FEATURES", lambda row: _rate(row["features"])),
            ("", lambda row: "the family's" if row["current"] else ""),
        ],
        empty="",
        wraps=("FALSE ALARM IN", "OF FEATURES"),
    )


def _count(rate: dict[str, Any]) -> str:
    return f"{rate['alarms']:,} of {rate['of']:,}"


def _rate(rate: dict[str, Any]) -> str:
    return f"{_count(rate)} (at most {rate['upper']:.2%})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _spread(quantiles: dict[str, float]) -> str:
    return f"{quantiles['0.1']:.3f} to {quantiles['99.9']:.3f}" if quantiles else "-"
