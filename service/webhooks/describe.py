"""Describes events in words, for chats."""

from collections.abc import Iterable, Mapping
from typing import Any

from featurewatch.service.kit.text import plain
from featurewatch.service.verdicts.statuses import BY_SEVERITY, PLACES_CHANGED

MAX_LETTERS = 1000


def text(type_: str, data: Mapping[str, Any]) -> str:
    """One line that says what happened. Parts that events of older versions lack are left out."""
    match type_:
        case "checkpoint.judged":
            line = _judged(data)
        case "checkpoint.deleted":
            line = f"{data.get('family')}: {data.get('checkpoint')} was deleted"
        case "family.deleted":
            line = f"{data.get('family')} was deleted"
        case "alert.raised":
            line = f"Alert: {_alert(data)}"
        case "alert.resolved":
            by = f" (by {data['resolved_by']})" if data.get("resolved_by") else ""
            line = f"Resolved: {_alert(data)}{by}"
        case "run.failed":
            error = data.get("error") or {}
            of = f" of {data['checkpoint']}" if data.get("checkpoint") else ""
            what = ". ".join(str(error[name]) for name in ("title", "detail") if error.get(name))
            line = f"Run failed: {data.get('family')}: {data.get('kind')}{of}" + (f": {what}" if what else "")
        case _:
            line = str(data.get("message", type_))
    return plain(line, MAX_LETTERS)


def escaped(line: str) -> str:
    """A line for Slack's `text`: untrusted parts can neither form links nor mention anyone."""
    for character, replacement in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("@", "@\u200b")):
        line = line.replace(character, replacement)
    return line


def _judged(data: Mapping[str, Any]) -> str:
    against = f" against {data['parent']}" if data.get("parent") else ""
    counts = _counts(data.get("statuses", {}), BY_SEVERITY)
    moved = _counts(data.get("places", {}), PLACES_CHANGED)
    places = f"; places: {moved}" if moved else ""
    alerts = f"; alerts: {data['alerts']}" if data.get("alerts") else ""
    return f"{data.get('family')}: {data.get('checkpoint')} was judged{against}: {counts}{places}{alerts}"


def _counts(counts: Mapping[str, int], words: Iterable[str]) -> str:
    return ", ".join(f"{counts[word]:,} {word}" for word in words if counts.get(word))


def _alert(data: Mapping[str, Any]) -> str:
    alert = data["alert"]
    where = f"{alert['family']}: " if alert["family"] else ""
    rule = f" (rule {alert['rule_name']})" if alert["rule_name"] else ""
    return f"{where}{alert['summary']}{rule}"
