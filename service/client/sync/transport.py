# Written by `make docs` from service/client/aio/transport.py.
"""HTTP for the client: retries, pagination, downloads."""

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
    """A connection to a service.

    key: needed unless the service runs on a loopback address without keys. timeout: of one request, in seconds.
    retries: maximum number of times that a request is sent again.
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
        """Yield all rows of a list, page by page."""
        query = {"limit": wire.PAGE_LIMIT} | dict(params or {})
        while True:
            page = self.json("GET", path, params=query)
            for row in page["data"]:
                yield row
            if not page.get("next_cursor"):
                return
            query["cursor"] = page["next_cursor"]

    def json(self, method: str, path: str, **options: Any) -> Any:
        """Send a request and return the JSON of the response; options are those of `send`."""
        return (self.send(method, path, **options)).json()

    def events(self, path: str) -> Iterator[Any]:
        """Yield the data of server-sent events until the service ends the stream."""
        try:
            # The service sends at least a comment every few seconds, well within the timeout.
            with self._http.stream("GET", path, headers={"Accept": "text/event-stream"}) as response:
                self._raise_for_error(response)
                for line in response.iter_lines():
                    if line.startswith("data:"):
                        yield json.loads(line.removeprefix("data:"))
        except httpx.TransportError as error:
            raise UnreachableError(f"{self.url} does not respond ({error})") from error

    def download(self, path: str, to: Path, *, params: Mapping[str, Any] | None = None) -> None:
        """Save a large response to a file. The file appears only when it is complete."""
        part = to.with_name(f".{to.name}.part")
        try:
            with self._http.stream("GET", path, params=params, headers={"Accept": "*/*"}) as response:
                self._raise_for_error(response)
                with part.open("wb") as file:
                    for piece in response.iter_bytes():
                        file.write(piece)
            part.replace(to)
        except httpx.TransportError as error:
            raise UnreachableError(f"{self.url} does not respond ({error})") from error
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
        """Send a request and retry it if that may help. Raises ApiError or UnreachableError.

        Own code rather than tenacity, whose callbacks for Retry-After and the last response would take as many lines.
        """
        all_headers = wire.headers_of(method, headers)
        for attempt in range(self.retries + 1):
            response = None
            try:
                response = self._http.request(method, path, params=params, json=body, headers=all_headers)
            except httpx.TransportError as error:
                if attempt == self.retries:
                    raise UnreachableError(f"{self.url} does not respond ({error})") from error
            except httpx.InvalidURL as error:
                raise UnreachableError(f"invalid service URL {self.url!r} ({error})") from error
            if response is not None and response.status_code not in wire.RETRIED:
                return wire.checked(response)
            pause = wire.pause_before(attempt, response)
            if response is not None and (pause is None or attempt == self.retries):
                return wire.checked(response)
            self.pause(pause or 0.0)
        raise AssertionError("unreachable")

    @staticmethod
    def _raise_for_error(response: httpx.Response) -> None:
        """Raise ApiError if a streamed response is an error, after reading its problem document."""
        if not response.is_success:
            response.read()
            wire.checked(response)
