"""Asking an OpenAI-compatible endpoint (`POST .../chat/completions`), patiently and within reason.

Its address is an operator's setting, but the way there is guarded like any other (`service.kit.outbound`). The key
stands in one header and nowhere else: what an endpoint says of an error may repeat it and is told without it.
"""

import json
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import urlsplit

import httpx2

from featurewatch.service.config import Settings
from featurewatch.service.features.words import plain
from featurewatch.service.kit import clock, outbound
from featurewatch.workers.errors import RunError
from featurewatch.workers.labels.prompts import Message, NonsenseError

TRIES = 4
"""Requests for one answer."""
PAUSES = (1.0, 4.0, 15.0)
"""Seconds before the next one, where the endpoint does not say."""
LONGEST_PAUSE = 120.0
"""An endpoint that wants to be left alone for longer counts as busy."""
_TOLD = 300

Answer = TypeVar("Answer")


class EndpointError(Exception):
    """There is no answer to be had to this question. `everywhere`: nor to any other one."""

    def __init__(self, code: str, detail: str, *, everywhere: bool = False) -> None:
        super().__init__(detail)
        self.code, self.detail, self.everywhere = code, detail, everywhere


class Endpoint:
    """The endpoint that the settings name. `check` is called while waiting, and may raise."""

    def __init__(self, settings: Settings, check: Callable[[], None]) -> None:
        if not settings.label_url or not settings.label_model:
            raise RunError(
                "no-label-endpoint",
                "labels of a model need FEATUREWATCH_LABEL_URL and FEATUREWATCH_LABEL_MODEL where the workers run",
            )
        self.model = settings.label_model
        self._url = settings.label_url.rstrip("/") + "/chat/completions"
        self._key = settings.label_key.get_secret_value()
        self._allow = outbound.parse_networks(settings.label_allow)
        self._seconds = settings.label_seconds
        self._check = check

    def ask(self, messages: list[Message], read: Callable[[str], Answer]) -> Answer:
        """What `read` makes of the answer; it raises NonsenseError where that is none. EndpointError.

        Asked again, TRIES times in all: after nonsense, timeouts, a lost connection, 408, 429 and errors of the server.
        """
        failed = EndpointError("no-answer", "it was not asked")
        for attempt in range(TRIES):
            self._check()
            pause = PAUSES[min(attempt, len(PAUSES) - 1)]
            try:
                reply = self._post(messages)
            except outbound.AddressRefusedError as error:
                raise EndpointError(
                    "label-address-refused",
                    f"{error}; FEATUREWATCH_LABEL_ALLOW names private networks that it may be in",
                    everywhere=True,
                ) from None
            except httpx2.HTTPError as error:
                failed = EndpointError("label-endpoint-unreachable", self._told(f"{type(error).__name__}: {error}"))
            else:
                if reply.status == HTTPStatus.OK:
                    try:
                        return read(_content(reply.body))
                    except NonsenseError as error:
                        failed, pause = EndpointError("label-nonsense", f"no answer to what was asked: {error}"), 0.0
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
        """What a status other than 200 comes to, and the pause before the next request; raises where that is no use."""
        said = self._told(reply.body.decode("utf-8", "replace"))
        detail = f"{urlsplit(self._url).hostname} answered {reply.status}: {said}"
        if reply.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            # Without what it said: that often has a part of the key in it.
            detail = f"{urlsplit(self._url).hostname} answered {reply.status}; is FEATUREWATCH_LABEL_KEY right?"
            raise EndpointError("label-key-refused", detail, everywhere=True)
        if reply.status == HTTPStatus.NOT_FOUND:
            raise EndpointError("label-endpoint-unknown", f"{detail}; check URL and model", everywhere=True)
        if reply.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.REQUEST_TIMEOUT) or reply.status >= 500:
            wanted = clock.seconds_of(reply.retry_after, clock.utcnow())
            busy = EndpointError("label-endpoint-busy", detail)
            if wanted is not None and wanted > LONGEST_PAUSE:
                raise busy
            return busy, pause if wanted is None else wanted
        raise EndpointError("label-request-refused", detail)

    def _told(self, text: str) -> str:
        """What the other side said, on one line and without the key."""
        return plain(text.replace(self._key, "***") if self._key else text, _TOLD)

    def _wait(self, seconds: float) -> None:
        while seconds > 0:
            self._check()
            time.sleep(min(seconds, 0.5))
            seconds -= 0.5


def _content(body: bytes) -> str:
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise NonsenseError("the body is no chat completion") from None
    if not isinstance(content, str):
        raise NonsenseError("the message has no text")
    return content
