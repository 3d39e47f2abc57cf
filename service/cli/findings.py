"""A report or a comparison as text: one aligned line per finding, with an example."""

from collections.abc import Mapping
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from featurewatch.service.cli import base
from featurewatch.service.features.schemas import Example, FeatureRow
from featurewatch.service.features.words import about, between, passage, share
from featurewatch.service.kit.text import plain
from featurewatch.service.verdicts.statuses import PLACES_CHANGED, Status

_NAMED_SUCCESSORS = 3


def show(report: Mapping[str, Any], title: str) -> None:
    """Print a report or a comparison of the API, the most important findings first."""
    say(title, style="bold")
    say(plain(report["headline"], most=4000))
    for caveat in report["caveats"]:
        say(f"! {plain(caveat, most=4000)}", style="yellow")
    findings = report["findings"]
    if findings:
        say("")
        _show_findings(findings)
    if report["changed"] > len(findings):
        say(f"and {report['changed'] - len(findings):,} more: featurewatch features")
    _show_not_judged(report["not_judged"])
    for signature in report.get("signatures", []):
        say(f"signature {plain(signature['name'])} is {signature['status']}: {plain(signature['what'], most=400)}")
    for circuit in report.get("circuits", []):
        say(plain(circuit["what"], most=400), style="magenta")
    for alert in report.get("alerts", []):
        say(f"alert {plain(alert['rule'])} ({alert['state']}): {plain(alert['summary'], most=400)}", style="red")


def _show_findings(findings: list[Mapping[str, Any]]) -> None:
    rows = [FeatureRow.model_validate(finding["feature"]) for finding in findings]
    cells = [[row.id, row.status, row.places or "", _left(row), _q(row), _what(row)] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    for row, line, finding in zip(rows, cells, findings, strict=True):
        text = Text()
        for value, width in zip(line[:-1], widths[:-1], strict=True):
            if width:
                text.append(value, style=base.STATUS_STYLES.get(value, "") if value in (row.status, row.places) else "")
                text.append(" " * (width - cell_len(value) + 2))
        text.append(line[-1])
        _line(text)
        for example in finding["examples"][:1]:
            parts = passage(Example.model_validate(example))
            if parts:
                before, token, after = parts
                _line(Text.assemble(" " * (widths[0] + 2), (before, "dim"), f"⟦{token}⟧", (after, "dim")))


def _show_not_judged(unjudged: Mapping[str, Any]) -> None:
    if not unjudged["features"]:
        return
    say("")
    watched = f", {unjudged['watched']:,} watched" if unjudged["watched"] else ""
    say(f"{unjudged['features']:,} could not be judged{watched}", style="bold")
    width = max(len(f"{reason['features']:,}") for reason in unjudged["reasons"])
    for reason in unjudged["reasons"]:
        say(f"{reason['features']:>{width},}  {reason['text']}")
    for named in unjudged["named"]:
        row = FeatureRow.model_validate(named["feature"])
        mark = " (watched)" if row.watched else ""
        why = f"{plain(named['why'], most=400)}. {named['detectable']}"
        say(f"{row.id}{mark} {about(row.label, row.auto_label)}".rstrip() + f": {why}")


def _left(row: FeatureRow) -> str:
    """`24% (18 to 31%)`: what is left of the feature; `rate 3 times (2.5 to 3.4 times)` if only its places changed."""
    value, ends, what = row.projection_ratio, row.projection_ratio_ci, ""
    if _by_places(row):
        value, ends, what = row.firing_rate_ratio, row.firing_rate_ratio_ci, "rate "
    if value is None:
        return "new" if row.status == Status.EMERGED else "-"
    low, high = ends or (None, None)
    if low is None or high is None:
        return f"{what}{share(value)}"
    return f"{what}{share(value)} ({between(low, high)})"


def _q(row: FeatureRow) -> str:
    q = row.places_q_value if _by_places(row) else row.q_value
    if q is None:
        return "-"
    return f"q {q:.2g}" if q >= 0.0001 else "q <0.0001"


def _by_places(row: FeatureRow) -> bool:
    """Whether only the places changed."""
    return not row.status.row.changed and row.places in PLACES_CHANGED


def _what(row: FeatureRow) -> str:
    """Whether the feature is watched, what replaced it, and its label."""
    parts = ["watched"] if row.watched else []
    if row.status == Status.REPLACED and row.successors:
        names = [successor.id for successor in row.successors]
        parts.append("by " + ", ".join(names[:_NAMED_SUCCESSORS]) + (" ..." if len(names) > _NAMED_SUCCESSORS else ""))
    return "  ".join([*parts, about(row.label, row.auto_label)]).rstrip()


def say(text: str, style: str = "") -> None:
    """Print a sentence, wrapped on a terminal and as one line elsewhere."""
    base.out.print(Text(text, style=style), soft_wrap=not base.out.is_terminal)


def _line(text: Text) -> None:
    """Print a line of a table, cut to the width of the terminal."""
    if base.out.is_terminal:
        base.out.print(text, no_wrap=True, overflow="ellipsis")
    else:
        base.out.print(Text(text.plain.rstrip()), soft_wrap=True)
