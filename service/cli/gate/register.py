"""`featurewatch checkpoint register`: registers a checkpoint from a CI job and writes the job's reports."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from featurewatch.service.cli import base, complete, findings, progress
from featurewatch.service.cli.arguments import Family, Name, Timeout, checkpoint_option
from featurewatch.service.cli.base import AsJson
from featurewatch.service.cli.gate import documents, policy, rules
from featurewatch.service.cli.gate.outcome import Outcome
from featurewatch.service.cli.gate.policy import Gate
from featurewatch.service.client import Client, ClientError
from featurewatch.service.client.types import Checkpoint, Report, Run
from featurewatch.service.config import JobSettings
from featurewatch.service.kit.text import plain
from featurewatch.service.verdicts.statuses import PLACES_CHANGED

Status = Literal["passed", "failed", "judged", "waiting", "error"]
Metadata = Annotated[
    list[str] | None, typer.Option(help="Metadata to store with the checkpoint, as NAME=VALUE. May be repeated.")
]
Priority = Annotated[int | None, typer.Option(help="Runs with a higher priority go first; default: 0.", min=0, max=100)]
GatePolicy = Annotated[
    str | None,
    typer.Option("--gate", help="Policy file (TOML), or `default`. Waits; exit code 1 if the gate fails."),
]
Summary = Annotated[
    Path | None,
    typer.Option(
        help="Append a Markdown summary to this file. It is also appended to the file in GITHUB_STEP_SUMMARY, if set."
    ),
]
JUnit = Annotated[Path | None, typer.Option(help="Write JUnit XML to this file, one test case per gate rule.")]
Outputs = Annotated[
    Path | None,
    typer.Option(
        help="Append status (passed, failed, judged, waiting or error), run_id and report_url to this file as "
        "NAME=VALUE lines, the format of GITHUB_OUTPUT and GitLab dotenv reports."
    ),
]


@dataclass
class Job:
    """A registration in progress, and the files that report its result to a CI system."""

    family: str
    name: str
    url: str
    summary: Sequence[Path]
    junit: Path | None
    outputs: Path | None
    gated: bool
    run: Run | None = None
    checkpoint: Checkpoint | None = None
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every rule passed."""
        return all(outcome.passed for outcome in self.outcomes)

    def prepare(self) -> None:
        """Create the output files now, so that an unwritable path is reported before the wait."""
        for path in filter(None, (*self.summary, self.junit, self.outputs)):
            documents.write(path, "", append=True)

    def write(self, status: Status, report: str = "", why: str = "") -> None:
        """Write the output files. report: Markdown; why: for an error, why there is no verdict."""
        result = {
            "passed": "passed its gate",
            "failed": "failed its gate",
            "judged": "is judged",
            "waiting": "has been read and waits for the first fit",
        }.get(status, f"has no verdict: {why}")
        for path in self.summary:
            title = f"featurewatch: {self.name} of {self.family} {result}"
            documents.write(path, documents.summary(title, self.outcomes, report, self.url), append=True)
        if self.junit:
            seconds = sum(self.run["seconds"].values()) if self.run else 0.0
            suite = f"featurewatch.{self.family}.{self.name}"
            text = documents.junit(suite, self.outcomes, seconds=seconds, error=why)
            documents.write(self.junit, text, append=False)
        if self.outputs:
            documents.write(self.outputs, documents.values(status, self.run, self.url), append=True)


def register(
    family: Family,
    name: Name,
    uri: Annotated[str, typer.Argument(help="hf://org/model@revision, file:///folder, activations+file:///folder ...")],
    adapter: Annotated[str | None, typer.Option(help="URI of a PEFT adapter to apply to the model.")] = None,
    parent: Annotated[
        str | None, checkpoint_option("Checkpoint to compare with; default: the family's newest.")
    ] = None,
    hook_point: Annotated[
        list[str] | None, typer.Option(help="Hook point to read, if different from the family's. May be repeated.")
    ] = None,
    fit: Annotated[
        str,
        typer.Option(
            help="auto, extend, refit or later.", autocompletion=complete.words("auto", "extend", "refit", "later")
        ),
    ] = "auto",
    metadata: Metadata = None,
    priority: Priority = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the verdicts and show progress.")] = False,
    gate_policy: GatePolicy = None,
    summary: Summary = None,
    junit: JUnit = None,
    outputs: Outputs = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Register a checkpoint, as a CI job does after training."""
    if gate_policy and fit == "later":
        raise base.UsageError(
            "--gate cannot be combined with --fit later: this checkpoint gets no verdicts until the first fit"
        )
    if junit and not gate_policy:
        raise base.UsageError("--junit needs --gate, for example --gate default: it writes one test case per gate rule")
    if (summary or outputs) and not (wait or gate_policy):
        raise base.UsageError("--summary and --outputs report the result, so they need --wait or --gate")
    gate = policy.load(gate_policy) if gate_policy else None
    body: dict[str, Any] = {
        "name": name, "uri": _uri(uri), "adapter": adapter and _uri(adapter), "parent": parent, "fit": fit,
        "hook_points": hook_point or None, "metadata": _pairs(metadata) or None, "priority": priority,
    }  # fmt: skip
    with base.connect() as client:
        if wait or gate is not None:
            url = documents.report_url(client.url, family, name)
            pages = [path for path in (summary, JobSettings().github_step_summary) if path]
            job = Job(family, name, url, pages, junit, outputs, gated=gate is not None)
            return _see_through(client, job, gate, body, timeout, as_json)
        registered = client.register(family, **body)
    if as_json:
        return base.show_json(registered)
    run = registered["run"]
    state = f"run {run['id']} is {run['state']}" if run else "its run was deleted"
    return base.out.print(f"{name} of {family} is registered; {state}", markup=False, soft_wrap=True)


def _see_through(
    client: Client, job: Job, gate: Gate | None, body: dict[str, Any], timeout: float | None, as_json: bool
) -> None:
    """Register, wait and evaluate the gate. The output files are written in every case."""
    job.prepare()
    try:
        job.run = client.register(job.family, **body)["run"]
        if job.run is not None:
            job.run = progress.follow(client, job.run["id"], timeout)
            reads = (job.run["result"] or {}).get("signature_run")
            if reads is not None:
                read = progress.follow(client, reads, timeout)
                job.run = job.run if read["state"] == "succeeded" else read
        job.checkpoint = client.checkpoint(job.family, job.name)
        if gate is not None and _succeeded(job.run):
            job.outcomes = list(rules.outcomes(gate, client, job.family, job.checkpoint))
        _conclude(client, job, as_json)
    except (ClientError, base.UsageError) as error:
        job.write("error", why=str(error))
        raise


def _conclude(client: Client, job: Job, as_json: bool) -> None:
    """Print the result, write the output files, and exit with the matching code."""
    run, checkpoint = job.run, job.checkpoint
    assert checkpoint
    succeeded = _succeeded(run)
    waits = succeeded and checkpoint["state"] == "harvested"
    report = client.report(job.family, job.name) if succeeded and not waits else None
    if as_json:
        verdict = {
            "passed": job.passed,
            "failures": [outcome.failure for outcome in job.outcomes if not outcome.passed],
            "rules": [outcome.document() for outcome in job.outcomes],
        }
        gate = verdict if job.gated and succeeded else None
        base.show_json({"checkpoint": checkpoint, "run": run, "report": report, "gate": gate})
    elif waits:
        base.out.print(f"{job.name} of {job.family} has been read and waits for the first fit", markup=False)
    elif report is not None:
        _show(job, report)
    if report is not None:
        status: Status = "judged" if not job.gated else "passed" if job.passed else "failed"
        job.write(status, client.report_text(job.family, job.name, format="markdown") if job.summary else "")
    elif waits:
        job.write("waiting")
    elif run is not None:
        job.write("error", why=progress.describe_end(run))
    if run is not None:
        progress.exit_unless_succeeded(run)
    if not job.passed:
        raise typer.Exit(base.FAILED)


def _succeeded(run: Run | None) -> bool:
    """Also true if the run is gone: the checkpoint was judged earlier, and its run was deleted since."""
    return run is None or run["state"] == "succeeded"


def _show(job: Job, report: Report) -> None:
    took = f" ({sum(job.run['seconds'].values()):.0f} s)" if job.run else ""
    findings.say(f"{job.name} of {job.family} is judged{took}")
    findings.say(plain(report["headline"], most=4000))
    for caveat in report["caveats"]:
        findings.say(f"! {plain(caveat, most=4000)}")
    base.show_fields((status, count) for status, count in report["counts"].items() if count)
    base.show_fields((places, report["places"][places]) for places in PLACES_CHANGED if report["places"].get(places))
    for signature in report["signatures"]:
        findings.say(plain(f"signature {signature['name']} is {signature['status']}: {signature['what']}", most=400))
    if not job.gated:
        return
    base.out.print("gate: [green]passed[/]" if job.passed else "gate: [red]failed[/]")
    for failed in (outcome for outcome in job.outcomes if not outcome.passed):
        base.out.print(f"  {failed.rule}: {plain(failed.failure, most=4000)}", markup=False, soft_wrap=True)
        for text in failed.evidence:
            base.out.print(f"    {plain(text, most=4000)}", markup=False, soft_wrap=True)


def _uri(text: str) -> str:
    """The URI unchanged. Raises UsageError for a bare path or name, and suggests the URI that may be meant."""
    if "://" in text:
        return text
    prefix = "activations+" if text.startswith("activations+") else ""
    path = Path(text.removeprefix(prefix)).expanduser().absolute()
    hub = "" if prefix or text.startswith(("/", ".", "~")) else f", or hf://{text} for a model on the Hub"
    raise base.UsageError(f"{text!r} is not a URI; use {prefix}{path.as_uri()} for a folder on the server{hub}")


def _pairs(items: list[str] | None) -> dict[str, str]:
    pairs = {}
    for item in items or []:
        name, equals, value = item.partition("=")
        if not (name and equals):
            raise base.UsageError(f"--metadata {item!r} must have the form NAME=VALUE")
        pairs[name] = value
    return pairs
