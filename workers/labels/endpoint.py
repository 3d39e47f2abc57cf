"""A client of an OpenAI-compatible endpoint (`POST .../chat/completions`), with retries.

The operator sets the address, but requests pass the same guard as all others (`service.kit.outbound`). The key appears
only in the Authorization header: it is removed from error messages, which may echo it.
"""

import json
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import urlsplit

import httpx2

from featurewatch.service.config import Settings
from featurewatch.service.kit import clock, outbound
from featurewatch.service.kit.text import plain
from featurewatch.workers.errors import RunError
from featurewatch.workers.labels.prompts import Message, NonsenseError

TRIES = 4
"""Requests per answer."""
PAUSES = (1.0, 4.0, 15.0)
"""Seconds between requests, unless the endpoint sets them."""
LONGEST_PAUSE = 120.0
"""An endpoint that asks for a longer pause counts as busy."""
_MESSAGE_LENGTH = 300

Answer = TypeVar("Answer")


class EndpointError(Exception):
    """The endpoint did not answer. `everywhere`: other questions would fail too."""

    def __init__(self, code: str, detail: str, *, everywhere: bool = False) -> None:
        super().__init__(detail)
        self.code, self.detail, self.everywhere = code, detail, everywhere


class Endpoint:
    """The endpoint in the settings. `check` is called while waiting, and may raise."""

    def __init__(self, settings: Settings, check: Callable[[], None]) -> None:
        if not settings.label_url or not settings.label_model:
            raise RunError(
                "no-label-endpoint",
                "Labelling requires FEATUREWATCH_LABEL_URL and FEATUREWATCH_LABEL_MODEL on the workers.",
            )
        self.model = settings.label_model
        self._url = settings.label_url.rstrip("/") + "/chat/completions"
        self._key = settings.label_key.get_secret_value()
        self._allow = outbound.parse_networks(settings.label_allow)
        self._seconds = settings.label_seconds
        self._check = check

    def ask(self, messages: list[Message], read: Callable[[str], Answer]) -> Answer:
        """The answer, parsed by `read`, which raises NonsenseError for an invalid one. Raises EndpointError.

        Retries up to TRIES requests after an invalid answer, timeouts, connection errors, 408, 429 and server errors.
        """
        failed = EndpointError("no-answer", "no request was made")
        for attempt in range(TRIES):
            self._check()
            pause = PAUSES[min(attempt, len(PAUSES) - 1)]
            try:
                reply = self._post(messages)
            except outbound.AddressRefusedError as error:
                raise EndpointError(
                    "label-address-refused",
                    f"{error}; to allow a private network, add it to FEATUREWATCH_LABEL_ALLOW",
                    everywhere=True,
                ) from None
            except httpx2.HTTPError as error:
                failed = EndpointError("label-endpoint-unreachable", self._redacted(f"{type(error).__name__}: {error}"))
            else:
                if reply.status == HTTPStatus.OK:
                    try:
                        return read(_content(reply.body))
                    except NonsenseError as error:
                        failed, pause = EndpointError("label-nonsense", f"invalid response: {error}"), 0.0
                else:
                    failed, pause = self._refused(reply, pause)
            if attempt < TRIES - 1:
                self._wait(pause)
        raise failed

    def _post(self, messages: list[Message]) -> outbound.Reply:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        body = json.dumps({"model": self.model, "messages": messages}).encode()
        return outbound.post(self._url, body=body, headers=headers, allow=self._allow, total_seconds=self._seconds)

    def _refused(self, reply: outbound.Reply, pause: float) -> tuple[EndpointError, float]:
        """The error for a status other than 200, and the pause before the next request; raises if retrying is
        useless."""
        message = self._redacted(reply.body.decode("utf-8", "replace"))
        detail = f"{urlsplit(self._url).hostname} answered {reply.status}: {message}"
        if reply.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            # Without the message, which often contains part of the key.
            detail = f"{urlsplit(self._url).hostname} answered {reply.status}; check FEATUREWATCH_LABEL_KEY"
            raise EndpointError("label-key-refused", detail, everywhere=True)
        if reply.status == HTTPStatus.NOT_FOUND:
            raise EndpointError(
                "label-endpoint-unknown",
                f"{detail}; check FEATUREWATCH_LABEL_URL and FEATUREWATCH_LABEL_MODEL",
                everywhere=True,
            )
        if reply.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.REQUEST_TIMEOUT) or reply.status >= 500:
            retry_after = clock.seconds_of(reply.retry_after, clock.utcnow())
            busy = EndpointError("label-endpoint-busy", detail)
            if retry_after is not None and retry_after > LONGEST_PAUSE:
                raise busy
            return busy, pause if retry_after is None else retry_after
        raise EndpointError("label-request-refused", detail)

    def _redacted(self, text: str) -> str:
        """A message of the endpoint, on one line and without the key."""
        return plain(text.replace(self._key, "***") if self._key else text, _MESSAGE_LENGTH)

    def _wait(self, seconds: float) -> None:
        while seconds > 0:
            self._check()
            time.sleep(min(seconds, 0.5))
            seconds -= 0.5


def _content(body: bytes) -> str:
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise NonsenseError("the body is not a chat completion") from None
    if not isinstance(content, str):
        raise NonsenseError("the message has no text")
    return content
