# Written by `make docs` from service/client/aio/transport.py.
"""How the client talks HTTP: retries, pages, downloads."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2 as httpx

from featurewatch.service.client import wire
from featurewatch.service.client.errors import UnreachableError


class Transport:
    """A connection to one service. `key` is needed unless the service runs on loopback without keys.

    `timeout` is for one request, in seconds; `retries` is how often one is sent again.
    """

    def __init__(self, url: str, key: str = "", *, timeout: float = 30.0, retries: int = 5) -> None:
        self.url = url.rstrip("/")
        self.retries = retries
        self.pause: Callable[[float], object] = time.sleep
        self._http = httpx.Client(**wire.options(url, key, timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def pages(self, path: str, params: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """All rows of a list, page by page."""
        query = {"limit": wire.PAGE_LIMIT} | dict(params or {})
        while True:
            page = self.json("GET", path, params=query)
            for row in page["data"]:
                yield row
            if not page.get("next_cursor"):
                return
            query["cursor"] = page["next_cursor"]

    def json(self, method: str, path: str, **options: Any) -> Any:
        """A request's answer as JSON; options as those of `send`."""
        return (self.send(method, path, **options)).json()

    def events(self, path: str) -> Iterator[Any]:
        """The data of server-sent events, until the service ends them."""
        try:
            # No limit between two of them: the service says something every few seconds.
            with self._http.stream("GET", path, headers={"Accept": "text/event-stream"}) as response:
                self._whole_error(response)
                for line in response.iter_lines():
                    if line.startswith("data:"):
                        yield json.loads(line.removeprefix("data:"))
        except httpx.TransportError as error:
            raise UnreachableError(f"{self.url} does not answer ({error})") from error

    def download(self, path: str, to: Path, *, params: Mapping[str, Any] | None = None) -> None:
        """A large answer into a file, which is there whole or not at all."""
        part = to.with_name(f".{to.name}.part")
        try:
            with self._http.stream("GET", path, params=params, headers={"Accept": "*/*"}) as response:
                self._whole_error(response)
                with part.open("wb") as file:
                    for piece in response.iter_bytes():
                        file.write(piece)
            part.replace(to)
        except httpx.TransportError as error:
            raise UnreachableError(f"{self.url} does not answer ({error})") from error
        finally:
            part.unlink(missing_ok=True)

    def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """One request, sent again where that may help. Raises ApiError or UnreachableError."""
        sent = wire.headers_of(method, headers)
        for attempt in range(self.retries + 1):
            response = None
            try:
                response = self._http.request(method, path, params=params, json=body, headers=sent)
            except httpx.TransportError as error:
                if attempt == self.retries:
                    raise UnreachableError(f"{self.url} does not answer ({error})") from error
            except httpx.InvalidURL as error:
                raise UnreachableError(f"{self.url!r} is no URL of a service ({error})") from error
            if response is not None and response.status_code not in wire.RETRIED:
                return wire.checked(response)
            pause = wire.pause_before(attempt, response)
            if response is not None and (pause is None or attempt == self.retries):
                return wire.checked(response)
            self.pause(pause or 0.0)
        raise AssertionError("unreachable")

    @staticmethod
    def _whole_error(response: httpx.Response) -> None:
        """ApiError where a stream begins with one; its problem document is read to the end first."""
        if not response.is_success:
            response.read()
            wire.checked(response)
