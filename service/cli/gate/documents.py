"""What a gate leaves for the CI system: a Markdown summary, JUnit XML, and values for later steps.

Formats: GitHub's job summaries and `GITHUB_OUTPUT`, GitLab's `artifacts:reports:dotenv` and `junit`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

from featurewatch.service.cli.base import UsageError
from featurewatch.service.cli.gate.outcome import Outcome
from featurewatch.service.client.types import Run
from featurewatch.service.reports.markdown import cell

# What XML 1.0 cannot hold, escaped or not.
_UNSPEAKABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def report_url(service: str, family: str, checkpoint: str) -> str:
    """The page where people read the report. It needs a login like every other page; no key is in it."""
    parts = (quote(part, safe="") for part in (family, checkpoint))
    return "{}/families/{}/checkpoints/{}".format(service.rstrip("/"), *parts)


def summary(title: str, outcomes: Sequence[Outcome], report: str, url: str) -> str:
    """Markdown for a job's page or a pull request: the rules first, what broke them, then the report."""
    lines = [f"# {cell(title)}", ""]
    if outcomes:
        lines += ["| rule | asks | outcome |", "|---|---|---|"]
        for one in outcomes:
            said = "passed" if one.passed else f"**failed**: {cell(one.failure)}"
            lines.append(f"| {cell(one.rule)} | {cell(one.asked)} | {said} |")
        lines.append("")
    for one in outcomes:
        if one.evidence:
            lines += [f"**{cell(one.rule)}**", "", *(f"- {cell(text)}" for text in one.evidence), ""]
    lines += [f"[Report]({url})", ""]
    return "\n".join(lines) + (f"\n{report.strip()}\n" if report else "")


def junit(suite: str, outcomes: Sequence[Outcome], *, seconds: float, error: str = "") -> str:
    """JUnit XML, one test case for each rule. error: why there is no verdict, which is no failure of a rule."""
    failed, errors = sum(not one.passed for one in outcomes), int(bool(error))
    counted = {"tests": str(len(outcomes) + errors), "failures": str(failed), "errors": str(errors)}
    root = ElementTree.Element("testsuites", {"name": "featurewatch", **counted})
    element = ElementTree.SubElement(root, "testsuite", {"name": _spoken(suite), "time": f"{seconds:.3f}", **counted})
    if error:
        case = ElementTree.SubElement(element, "testcase", classname=_spoken(suite), name="the checkpoint is judged")
        ElementTree.SubElement(case, "error", message=_spoken(error)).text = _spoken(error)
    for one in outcomes:
        name = f"{one.rule}: {one.asked}"
        case = ElementTree.SubElement(element, "testcase", classname=_spoken(suite), name=_spoken(name))
        if not one.passed:
            failure = ElementTree.SubElement(case, "failure", message=_spoken(one.failure))
            failure.text = _spoken("\n".join(one.evidence) or one.failure)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def values(status: str, run: Run | None, url: str) -> str:
    """`NAME=VALUE` lines that GitHub and GitLab both read. status: as `--outputs` names them."""
    return f"status={status}\nrun_id={run['id'] if run else ''}\nreport_url={url}\n"


def write(path: Path, text: str, *, append: bool) -> None:
    """Write a document, the folder made where it is missing. UsageError where that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if append else "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}") from error


def _spoken(text: str) -> str:
    return _UNSPEAKABLE.sub("\ufffd", text)
