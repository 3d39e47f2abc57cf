"""What a gate writes for the CI system: a Markdown summary, JUnit XML, and values for later steps.

Formats: GitHub's job summaries and `GITHUB_OUTPUT`, GitLab's `artifacts:reports:dotenv` and `junit`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

from featurewatch.service.cli.base import writing
from featurewatch.service.cli.gate.outcome import Outcome
from featurewatch.service.client.types import Run
from featurewatch.service.reports.markdown import cell

# Characters that XML 1.0 does not allow, escaped or not.
_INVALID_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def report_url(service: str, family: str, checkpoint: str) -> str:
    """URL of the report's page. It requires a login like every other page, and contains no key."""
    parts = (quote(part, safe="") for part in (family, checkpoint))
    return "{}/families/{}/checkpoints/{}".format(service.rstrip("/"), *parts)


def summary(title: str, outcomes: Sequence[Outcome], report: str, url: str) -> str:
    """Markdown for a job's page or a pull request: the rules, the evidence of each failure, the report."""
    lines = [f"# {cell(title)}", ""]
    if outcomes:
        lines += ["| rule | requires | outcome |", "|---|---|---|"]
        for outcome in outcomes:
            result = "passed" if outcome.passed else f"**failed**: {cell(outcome.failure)}"
            lines.append(f"| {cell(outcome.rule)} | {cell(outcome.asked)} | {result} |")
        lines.append("")
    for outcome in outcomes:
        if outcome.evidence:
            lines += [f"**{cell(outcome.rule)}**", "", *(f"- {cell(text)}" for text in outcome.evidence), ""]
    lines += [f"[Report]({url})", ""]
    return "\n".join(lines) + (f"\n{report.strip()}\n" if report else "")


def junit(suite: str, outcomes: Sequence[Outcome], *, seconds: float, error: str = "") -> str:
    """JUnit XML, one test case per rule. error: why there is no verdict; it is reported as an error, not a failure."""
    failed, errors = sum(not outcome.passed for outcome in outcomes), int(bool(error))
    totals = {"tests": str(len(outcomes) + errors), "failures": str(failed), "errors": str(errors)}
    root = ElementTree.Element("testsuites", {"name": "featurewatch", **totals})
    element = ElementTree.SubElement(root, "testsuite", {"name": _xml(suite), "time": f"{seconds:.3f}", **totals})
    if error:
        case = ElementTree.SubElement(element, "testcase", classname=_xml(suite), name="the checkpoint is judged")
        ElementTree.SubElement(case, "error", message=_xml(error)).text = _xml(error)
    for outcome in outcomes:
        name = f"{outcome.rule}: {outcome.asked}"
        case = ElementTree.SubElement(element, "testcase", classname=_xml(suite), name=_xml(name))
        if not outcome.passed:
            failure = ElementTree.SubElement(case, "failure", message=_xml(outcome.failure))
            failure.text = _xml("\n".join(outcome.evidence) or outcome.failure)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def values(status: str, run: Run | None, url: str) -> str:
    """`NAME=VALUE` lines for GitHub and GitLab. status: one of those that `--outputs` documents."""
    return f"status={status}\nrun_id={run['id'] if run else ''}\nreport_url={url}\n"


def write(path: Path, text: str, *, append: bool) -> None:
    """Write a document and create its folder if needed. Raises UsageError if it cannot be written."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if append else "w", encoding="utf-8") as file:
            file.write(text)


def _xml(text: str) -> str:
    return _INVALID_IN_XML.sub("\ufffd", text)
