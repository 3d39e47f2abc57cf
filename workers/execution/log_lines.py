"""What an attempt logs about its run, until a transaction that holds the run writes it."""

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

MOST_CHARACTERS = 4000
"""Limit of a line's text, and of its fields together. A traceback has its own limit."""
_LEVELS = {"info": Level.INFO, "warning": Level.WARNING, "error": Level.ERROR, "critical": Level.ERROR}
_KNOWN = {"event", "level", "timestamp", "logger", "run", "attempt", "request_id", "exc_info", "exception"}
_CREDENTIALS = re.compile(
    r"(?<=://)[^\s/@]+(?=@)"  # user and password of an address
    r"|(?<=Bearer )\S+"
    r"|\b(?:fw|hf)_[A-Za-z0-9]{16,}|\bwhsec_[A-Za-z0-9+/=]+"
    r"|(?<=[?&])(?:X-Amz-|X-Goog-|sig|Signature|token|key)[^\s'\"]+",  # signed URLs
    re.IGNORECASE,
)
"""What is redacted from a run's log, besides the configured secrets: passwords in URLs, bearer tokens, our keys and
webhook secrets, Hugging Face tokens, and the signatures of signed URLs."""
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class LogLines:
    """Collects the lines that matter to a reader: featurewatch's own from `info`, those of libraries from `warning`.

    Lines in the middle are dropped if there are more than a log stores.
    """

    def __init__(self, settings: Settings, last: int) -> None:
        """`last`: number of the last line that the run's log already has."""
        self.last = last
        self._waiting: list[Line] = []
        self._lock = threading.Lock()
        secrets = (
            settings.secret_key.get_secret_value(),
            *settings.old_secret_keys,
            settings.label_key.get_secret_value(),
        )
        self._secrets = [secret for secret in secrets if secret]

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add a structlog entry that is not rendered yet; from any thread."""
        level = _LEVELS.get(entry["level"])
        ours = str(entry.get("logger", "")).startswith("featurewatch")
        if level is None or (level is Level.INFO and not ours):
            return
        event = self._text(str(entry["event"]))
        fields = self._fields(entry if ours else {**entry, "by": entry["logger"]})
        with self._lock:
            self.last += 1
            self._waiting.append(Line(self.last, clock.utcnow(), level, event, fields))
            if len(self._waiting) > FIRST + 1 + LAST:
                del self._waiting[max(0, FIRST + 2 - self._waiting[0].number)]

    def waiting(self) -> list[Line]:
        """The lines that are not written yet."""
        with self._lock:
            return list(self._waiting)

    def ending(self, **fields: Any) -> list[Line]:
        """The same, and a last line that the run succeeded: true only if the transaction that writes it commits."""
        return [*self.waiting(), Line(self.last + 1, clock.utcnow(), Level.INFO, "succeeded", fields)]

    def written(self, lines: list[Line]) -> None:
        """Forget lines that are in the database now."""
        if lines:
            with self._lock:
                self._waiting = [line for line in self._waiting if line.number > lines[-1].number]

    def _fields(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        extra = {key: value for key, value in entry.items() if key not in _KNOWN and not key.startswith("_")}
        fields: dict[str, Any] = self._clean(plain(extra))
        if len(whole := json.dumps(fields, ensure_ascii=False)) > MOST_CHARACTERS:
            fields = {"cut": _cut(whole)}
        traceback = format_exc_info(None, "", dict(entry)).get("exception")  # without values of variables
        return fields | ({"exception": self._text(traceback)} if traceback else {})

    def _clean(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self._text(key): self._clean(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._clean(item) for item in value]
        return self._text(value) if isinstance(value, str) else value

    def _text(self, text: str) -> str:
        """Text without secrets that every database can store, and not too long."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return _cut(_UNSTORABLE.sub("\ufffd", _CREDENTIALS.sub("***", text)))


def _cut(text: str) -> str:
    """Drops the middle of a long text: the end of a traceback says what went wrong."""
    over = len(text) - MOST_CHARACTERS
    if over <= 0:
        return text
    begin = MOST_CHARACTERS // 4
    return f"{text[:begin]} [... {over:,} characters ...] {text[begin + over :]}"
