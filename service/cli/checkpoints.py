"""`featurewatch family`, `checkpoint list`, `checkpoint show`, `run`, `report`."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from featurewatch.service.cli import base, complete, progress, told
from featurewatch.service.cli.base import AsJson
from featurewatch.service.cli.told import MaxQ, MinChange
from featurewatch.service.client.types import Attempt, LogLine, Run
from featurewatch.service.client.wire import FINAL_STATES
from featurewatch.service.runs.schemas import Level, LogLineView
from featurewatch.service.runs.words import as_text, seen

family_app = typer.Typer(help="Families: the models that are tracked together.", no_args_is_help=True)
checkpoint_app = typer.Typer(help="Checkpoints: register, list, show.", no_args_is_help=True)
run_app = typer.Typer(help="Runs: what the workers do.", no_args_is_help=True)

Family = Annotated[str, typer.Argument(help="Name of the family.", autocompletion=complete.families)]
Timeout = Annotated[float | None, typer.Option(help="Seconds to wait at most; exit code 3 after that.", min=0)]
Name = Annotated[str, typer.Argument(help="Name of the checkpoint.", autocompletion=complete.checkpoints)]
RunId = Annotated[str, typer.Argument(help="Id of the run, run_...", autocompletion=complete.runs)]

LOOK_SECONDS = 1.0
_LEVEL_STYLES = {"warning": "yellow", "error": "red"}


def add_to(app: typer.Typer) -> None:
    """Add these commands to the main one."""
    app.add_typer(family_app, name="family")
    app.add_typer(checkpoint_app, name="checkpoint")
    app.add_typer(run_app, name="run")
    app.command()(report)


@family_app.command("create")
def create_family(
    name: Annotated[str, typer.Argument(help="Its name: letters, digits, dots, dashes.")],
    hook_point: Annotated[list[str], typer.Option(help="Where to read, e.g. resid_post.12. May be repeated.")],
    corpus: Annotated[str | None, typer.Option(help="URI of the probe corpus; default: built in.")] = None,
    documents: Annotated[int | None, typer.Option(help="Most documents of the corpus.", min=1)] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of a document that are read.", min=2)] = None,
    features: Annotated[int | None, typer.Option(help="Features of the first dictionary.", min=1)] = None,
    k: Annotated[int | None, typer.Option(help="Features that fire at a position, on average.", min=1)] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of a full fit.", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Positions of one step.", min=16)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate of the fit.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the fit.")] = None,
    policy: Annotated[Path | None, typer.Option(help="JSON file with thresholds of the verdicts.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a family. What is left out takes the service's defaults."""
    corpus_part = _given(uri=corpus, max_documents=documents, context_length=context)
    crosscoder = _given(
        n_features=features, k=k, steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed
    )
    with base.connect() as client:
        made = client.create_family(
            name,
            hook_point,
            corpus=corpus_part or None,
            crosscoder=crosscoder or None,
            policy=_read_json(policy) if policy else None,
        )
    base.show_json(made) if as_json else base.show_fields(made.items())


@family_app.command("list")
def list_families(as_json: AsJson = False) -> None:
    """List the families."""
    with base.connect() as client:
        rows = list(client.families())
    if as_json:
        return base.show_json(rows)
    columns = [
        ("NAME", lambda row: row["name"]),
        ("HOOK POINTS", lambda row: row["hook_points"]),
        ("FEATURES", lambda row: row["n_features"]),
        ("GENERATION", lambda row: row["generation"]),
        ("CREATED", lambda row: base.moment(row["created_at"])),
    ]
    return base.show_rows(
        rows, columns, empty="No family yet; `featurewatch family create` makes one.", wraps=("HOOK POINTS",)
    )


@family_app.command("show")
def show_family(family: Family, as_json: AsJson = False) -> None:
    """Show a family with its settings."""
    with base.connect() as client:
        row = client.family(family)
    base.show_json(row) if as_json else base.show_fields(row.items())


@family_app.command("delete")
def delete_family(family: Family, yes: base.Yes = False, as_json: AsJson = False) -> None:
    """Delete a family with its checkpoints, features, runs and artifacts. This cannot be undone."""
    base.confirm(f"Delete the family {family} with all its checkpoints, features, runs and artifacts?", yes=yes)
    with base.connect() as client:
        client.delete_family(family)
    base.show_json({"deleted": family}) if as_json else base.say(f"{family} is deleted")


def end_as(run: Run) -> None:
    """Exit code 1 and the reason where a run did not succeed."""
    if run["state"] != "succeeded":
        raise typer.Exit(base.complain(why(run), base.FAILED))


def why(run: Run) -> str:
    """Why a run did not succeed."""
    error = run["error"]
    reason = f": {error['title']}: {error['detail']} ({error['code']})" if error else ""
    return f"run {run['id']} {run['state']}{reason}"


@checkpoint_app.command("list")
def list_checkpoints(family: Family, as_json: AsJson = False) -> None:
    """List the checkpoints of a family."""
    with base.connect() as client:
        rows = list(client.checkpoints(family))
    if as_json:
        return base.show_json(rows)
    columns = [
        ("NAME", lambda row: row["name"]),
        ("STATE", lambda row: row["state"]),
        ("PARENT", lambda row: row["parent"]),
        ("ACTIVATIONS", lambda row: {True: "kept", False: "removed"}.get(row["activations_kept"])),
        ("FVU", lambda row: (row["quality"] or {}).get("fvu")),
        ("REGISTERED", lambda row: base.moment(row["created_at"])),
        ("URI", lambda row: row["resolved_uri"] or row["uri"]),
    ]
    return base.show_rows(
        rows,
        columns,
        empty="No checkpoint yet; `featurewatch checkpoint register` adds one.",
        optional=("ACTIVATIONS", "REGISTERED"),
    )


@checkpoint_app.command("show")
def show_checkpoint(family: Family, name: Name, as_json: AsJson = False) -> None:
    """Show a checkpoint with its quality."""
    with base.connect() as client:
        row = client.checkpoint(family, name)
    if as_json:
        return base.show_json(row)
    run = row["run"]
    newest = run and f"{run['id']} {run['kind']} {run['state']}"
    return base.show_fields([*((key, value) for key, value in row.items() if key != "run"), ("run", newest)])


@checkpoint_app.command("delete")
def delete_checkpoint(
    family: Family,
    name: Name,
    reparent: Annotated[bool, typer.Option("--reparent", help="Hand its children to its parent.")] = False,
    yes: base.Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete a checkpoint with its verdicts, runs and alerts. One with children is kept, unless they are handed on."""
    base.confirm(f"Delete the checkpoint {name} of {family} with its verdicts, runs and alerts?", yes=yes)
    with base.connect() as client:
        client.delete_checkpoint(family, name, reparent=reparent)
    base.show_json({"deleted": name}) if as_json else base.say(f"{name} of {family} is deleted")


@run_app.command("list")
def list_runs(
    family: Annotated[str | None, typer.Option(help="Only this family's.", autocompletion=complete.families)] = None,
    state: Annotated[str | None, typer.Option(help="Only those in this state.", autocompletion=complete.states)] = None,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first."""
    with base.connect() as client:
        rows = list(client.runs(family=family, state=state))
    if as_json:
        return base.show_json(rows)
    columns = [
        ("ID", lambda row: row["id"]),
        ("FAMILY", lambda row: row["family"]),
        ("CHECKPOINT", lambda row: row["checkpoint"]),
        ("KIND", lambda row: row["kind"]),
        ("STATE", lambda row: row["state"]),
        ("STAGE", lambda row: row["stage"]),
        ("PROGRESS", lambda row: f"{row['progress']:.0%}"),
        ("ATTEMPT", lambda row: row["attempt"]),
        ("ELAPSED", lambda row: row["started_at"] and base.duration(base.age(row["started_at"], row["finished_at"]))),
        ("AGE", lambda row: base.duration(base.age(row["created_at"]))),
    ]
    optional = ("ATTEMPT", "STAGE", "PROGRESS", "ELAPSED", "FAMILY")
    return base.show_rows(rows, columns, empty="No run.", optional=optional)


@run_app.command("show")
def show_run(run: RunId, as_json: AsJson = False) -> None:
    """Show a run, and each attempt at it with what it cost."""
    with base.connect() as client:
        row, attempts = client.run(run), list(client.attempts(run))
    if as_json:
        return base.show_json({**row, "attempts": attempts})
    base.show_fields((name, value) for name, value in row.items() if name != "usage")
    columns: list[tuple[str, Callable[[Attempt], Any]]] = [
        ("ATTEMPT", lambda one: one["number"]),
        ("OUTCOME", lambda one: one["outcome"] or "goes on"),
        ("WHY", lambda one: one["error"] and one["error"]["detail"]),
        ("DEVICE", lambda one: one["usage"].get("device")),
        ("CPU SECONDS", lambda one: one["usage"].get("cpu_seconds")),
        ("PEAK MEMORY", lambda one: (peak := one["usage"].get("peak_memory_bytes")) and base.size(peak)),
        ("WORKER", lambda one: one["worker"]),
    ]
    return base.show_rows(
        attempts, columns, empty="No worker has tried it yet.", wraps=("WHY",), optional=("WORKER", "DEVICE")
    )


@run_app.command("log")
def show_log(
    run: RunId,
    attempt: Annotated[int | None, typer.Option(help="Of this attempt only.", min=1)] = None,
    level: Annotated[Level, typer.Option(help="Lines of this level and of those that matter more.")] = Level.INFO,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run is over.")] = False,
    as_json: AsJson = False,
) -> None:
    """What the workers logged of a run, oldest first. --follow --json prints an object a line."""
    last = 0
    with base.connect() as client:
        if as_json and not follow:
            return base.show_json(client.log(run, attempt=attempt, level=level))
        over = False
        while not over:
            over = not follow or client.run(run)["state"] in FINAL_STATES  # before its last lines are asked for
            for line in client.log(run, attempt=attempt, level=level, after=last):
                last = line["number"]
                typer.echo(json.dumps(line)) if as_json else _show_line(line)
            if not over:
                time.sleep(LOOK_SECONDS)
    return None if last else base.say("No line: they come when a worker has taken the run.")


def _show_line(line: LogLine) -> None:
    text = as_text(LogLineView.model_validate(line))
    base.out.print(Text(text, style=_LEVEL_STYLES.get(line["level"], "")), soft_wrap=True)


@run_app.command("wait")
def wait_for_run(run: RunId, timeout: Timeout = None, as_json: AsJson = False) -> None:
    """Wait for a run; exit code 1 where it did not succeed."""
    with base.connect() as client:
        row = progress.follow(client, run, timeout)
    base.show_json(row) if as_json else base.show_fields([("state", row["state"]), ("seconds", row["seconds"])])
    end_as(row)


@run_app.command("cancel")
def cancel_run(run: RunId, as_json: AsJson = False) -> None:
    """Ask a run to stop; the worker confirms it at its next step."""
    with base.connect() as client:
        row = client.cancel(run)
    base.show_json(row) if as_json else base.show_fields([("state", row["state"])])


@run_app.command("retry")
def retry_run(run: RunId, as_json: AsJson = False) -> None:
    """Queue a failed or cancelled run again; it goes on from what is already made."""
    with base.connect() as client:
        row = client.retry(run)
    base.show_json(row) if as_json else base.show_fields([("state", row["state"])])


@run_app.command("delete")
def delete_run(run: RunId, yes: base.Yes = False, as_json: AsJson = False) -> None:
    """Delete a run that ended, with its attempts and its log. What it wrote of its checkpoint stays."""
    base.confirm(f"Delete the run {run} with its log?", yes=yes)
    with base.connect() as client:
        client.delete_run(run)
    base.show_json({"deleted": run}) if as_json else base.say(f"{run} is deleted")


def report(
    family: Family,
    name: Name,
    baseline: Annotated[
        str | None,
        typer.Option(help="Compare with this checkpoint; default: its parent.", autocompletion=complete.checkpoints),
    ] = None,
    min_change: MinChange = None,
    max_q: MaxQ = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="text, markdown, html or json.",
            autocompletion=complete.words("text", "markdown", "html", "json"),
        ),
    ] = "text",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """What changed in a checkpoint, how sure that is, and what could not be judged."""
    form = "json" if as_json else form
    if form not in ("text", "markdown", "html", "json"):
        raise base.UsageError(f"there is no format {form!r}; choose text, markdown, html or json")
    query: dict[str, Any] = {"baseline": baseline, "min_change": min_change, "max_q": max_q}
    with base.connect() as client:
        if form == "text" and not output:
            answer = client.report(family, name, **query)
            return told.show(
                answer, f"{family}: {name}" + (f" against {answer['baseline']}" if answer["baseline"] else "")
            )
        if form == "json":
            text = json.dumps(client.report(family, name, **query), indent=2)
        else:
            text = client.report_text(family, name, format="html" if form == "html" else "markdown", **query)
    if not output:
        return typer.echo(seen(text))
    base.write(output, text + "\n")
    return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise base.UsageError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise base.UsageError(f"{path} holds no JSON object")
    return value


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
