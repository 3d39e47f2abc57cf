"""Events in plain words, for people who read them in a chat."""

from collections.abc import Mapping
from typing import Any

from featurewatch.service.features.words import plain
from featurewatch.service.verdicts.statuses import BY_SEVERITY

MOST_LETTERS = 1000


def text(type_: str, data: Mapping[str, Any]) -> str:
    """One line that says what happened. An event of an older version, which lacks a part, is said without it."""
    match type_:
        case "checkpoint.judged":
            said = _judged(data)
        case "checkpoint.deleted":
            said = f"{data.get('family')}: {data.get('checkpoint')} was deleted"
        case "family.deleted":
            said = f"{data.get('family')} was deleted"
        case "alert.raised":
            said = f"Alert: {_alert(data)}"
        case "alert.resolved":
            shown = f", as {data['resolved_by']} shows" if data.get("resolved_by") else ""
            said = f"Resolved: {_alert(data)}{shown}"
        case "run.failed":
            error = data.get("error") or {}
            of = f" of {data['checkpoint']}" if data.get("checkpoint") else ""
            what = ". ".join(str(error[name]) for name in ("title", "detail") if error.get(name))
            said = f"Run failed: {data.get('family')}: {data.get('kind')}{of}" + (f": {what}" if what else "")
        case _:
            said = str(data.get("message", type_))
    return plain(said, MOST_LETTERS)


def escaped(line: str) -> str:
    """A line as Slack's `text` takes it: what comes from outside can make no link and call nobody."""
    for character, instead in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("@", "@\u200b")):
        line = line.replace(character, instead)
    return line


def _judged(data: Mapping[str, Any]) -> str:
    against = f" against {data['parent']}" if data.get("parent") else ""
    counts = data.get("statuses", {})
    shown = ", ".join(f"{counts[status]:,} {status}" for status in BY_SEVERITY if counts.get(status))
    alerts = data.get("alerts", 0)
    told = f"; alerts: {alerts}" if alerts else ""
    return f"{data.get('family')}: {data.get('checkpoint')} is judged{against}: {shown}{told}"


def _alert(data: Mapping[str, Any]) -> str:
    alert = data["alert"]
    where = f"{alert['family']}: " if alert["family"] else ""
    rule = f" (rule {alert['rule_name']})" if alert["rule_name"] else ""
    return f"{where}{alert['summary']}{rule}"
