"""A line of a run's log as text, for a terminal and for a file."""

import re
from collections.abc import Mapping
from typing import Any

from featurewatch.service.runs.schemas import LogLineView

_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except tab and newline, direction changes, and characters that terminals cannot encode."""


def as_text(line: LogLineView) -> str:
    """`2026-07-30 12:00:01.250  #2  warning  missed a beat  error=...`, followed by any traceback."""
    head = [f"{line.at:%Y-%m-%d %H:%M:%S}.{line.at.microsecond // 1000:03}", f"#{line.attempt}", f"{line.level:<7}"]
    text = "  ".join(filter(None, [*head, indented(line.event), indented(details(line.fields))]))
    traceback = line.fields.get("exception")
    return f"{text}\n    {indented(str(traceback).rstrip())}" if traceback else text


def details(fields: Mapping[str, Any]) -> str:
    """`stage=fit seconds=3.2`: the fields of a line, without a traceback."""
    return " ".join(f"{name}={_value(value)}" for name, value in fields.items() if name != "exception")


def indented(text: str) -> str:
    """Text with indented continuation lines, so that it cannot imitate another line of the log."""
    return seen(text).replace("\n", "\n    ")


def seen(text: str) -> str:
    """Text with terminal control characters replaced."""
    return _UNSEEN.sub("\ufffd", text.replace("\r\n", "\n"))


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_value(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return "-" if value is None else str(value)
