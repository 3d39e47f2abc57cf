"""What an attempt logs of its run, until a transaction that holds the run has written it."""

import json
import re
import threading
from collections.abc import Mapping
from typing import Any

from structlog.processors import format_exc_info

from featurewatch.service.config import Settings
from featurewatch.service.kit import clock
from featurewatch.service.runs.lines import FIRST, LAST, Line
from featurewatch.service.runs.schemas import Level
from featurewatch.service.webhooks.logic import plain

MOST_LETTERS = 4000
"""Of a text of a line, and of its fields together. A traceback counts apart."""
_LEVELS = {"info": Level.INFO, "warning": Level.WARNING, "error": Level.ERROR, "critical": Level.ERROR}
_KNOWN = {"event", "level", "timestamp", "logger", "run", "attempt", "request_id", "exc_info", "exception"}
_SECRET = re.compile(
    r"(?<=://)[^\s/@]+(?=@)"  # user and password of an address
    r"|(?<=Bearer )\S+"
    r"|\b(?:fw|hf)_[A-Za-z0-9]{16,}|\bwhsec_[A-Za-z0-9+/=]+"
    r"|(?<=[?&])(?:X-Amz-|X-Goog-|sig|Signature|token|key)[^\s'\"]+",  # what opens an address for a while
    re.IGNORECASE,
)
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class Lines:
    """Takes the lines that concern a reader: ours from `info` on, those of libraries from `warning` on.

    Of more than a log keeps, those in the middle are let go at once.
    """

    def __init__(self, settings: Settings, had: int) -> None:
        """`had`: how many lines the run's log has had before."""
        self.last = had
        self._waiting: list[Line] = []
        self._lock = threading.Lock()
        known = [
            settings.secret_key.get_secret_value(),
            *settings.old_secret_keys,
            settings.label_key.get_secret_value(),
        ]
        self._known = [secret for secret in known if secret]

    def add(self, said: Mapping[str, Any]) -> None:
        """Take a line as structlog has it before it is rendered; from any thread."""
        level = _LEVELS.get(said["level"])
        ours = str(said.get("logger", "")).startswith("featurewatch")
        if level is None or (level is Level.INFO and not ours):
            return
        event, fields = self._text(str(said["event"])), self._fields(said if ours else {**said, "by": said["logger"]})
        with self._lock:
            self.last += 1
            self._waiting.append(Line(self.last, clock.utcnow(), level, event, fields))
            if len(self._waiting) > FIRST + 1 + LAST:
                del self._waiting[max(0, FIRST + 2 - self._waiting[0].number)]

    def waiting(self) -> list[Line]:
        """The lines that are to be written."""
        with self._lock:
            return list(self._waiting)

    def ending(self, **fields: Any) -> list[Line]:
        """They, and that the run succeeded, which is so only if the transaction that they are written in commits."""
        found = self.waiting()
        return [*found, Line(self.last + 1, clock.utcnow(), Level.INFO, "succeeded", fields)]

    def written(self, lines: list[Line]) -> None:
        """These are in the database now."""
        if lines:
            with self._lock:
                self._waiting = [line for line in self._waiting if line.number > lines[-1].number]

    def _fields(self, said: Mapping[str, Any]) -> dict[str, Any]:
        told = {key: value for key, value in said.items() if key not in _KNOWN and not key.startswith("_")}
        fields: dict[str, Any] = self._clean(plain(told))
        if len(whole := json.dumps(fields, ensure_ascii=False)) > MOST_LETTERS:
            fields = {"cut": _cut(whole)}
        traceback = format_exc_info(None, "", dict(said)).get("exception")  # no values of variables in it
        return fields | ({"exception": self._text(traceback)} if traceback else {})

    def _clean(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self._text(key): self._clean(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._clean(item) for item in value]
        return self._text(value) if isinstance(value, str) else value

    def _text(self, text: str) -> str:
        """Text that every database takes, without what is nobody's business, and not too long."""
        for secret in self._known:
            text = text.replace(secret, "***")
        return _cut(_UNSTORABLE.sub("\ufffd", _SECRET.sub("***", text)))


def _cut(text: str) -> str:
    """Its middle is left out: what went wrong stands at the end of a traceback."""
    over = len(text) - MOST_LETTERS
    if over <= 0:
        return text
    begin = MOST_LETTERS // 4
    return f"{text[:begin]} [... {over:,} characters ...] {text[begin + over :]}"
