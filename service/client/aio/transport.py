"""HTTP for the client: retries, pagination, downloads."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2 as httpx

from featurewatch.service.client import wire
from featurewatch.service.client.errors import UnreachableError


class AsyncTransport:
    """A connection to a service.

    key: needed unless the service runs on a loopback address without keys. timeout: of one request, in seconds.
    retries: maximum number of times that a request is sent again.
    """

    def __init__(self, url: str, key: str = "", *, timeout: float = 30.0, retries: int = 5) -> None:
        self.url = url.rstrip("/")
        self.retries = retries
        self.pause: Callable[[float], Awaitable[object]] = asyncio.sleep
        self._http = httpx.AsyncClient(**wire.options(url, key, timeout))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def pages(self, path: str, params: Mapping[str, Any] | None = None) -> AsyncIterator[Any]:
        """Yield all rows of a list, page by page."""
        query = {"limit": wire.PAGE_LIMIT} | dict(params or {})
        while True:
            page = await self.json("GET", path, params=query)
            for row in page["data"]:
                yield row
            if not page.get("next_cursor"):
                return
            query["cursor"] = page["next_cursor"]

    async def json(self, method: str, path: str, **options: Any) -> Any:
        """Send a request and return the JSON of the response; options are those of `send`."""
        return (await self.send(method, path, **options)).json()

    async def events(self, path: str) -> AsyncIterator[Any]:
        """Yield the data of server-sent events until the service ends the stream."""
        try:
            # The service sends at least a comment every few seconds, well within the timeout.
            async with self._http.stream("GET", path, headers={"Accept": "text/event-stream"}) as response:
                await self._raise_for_error(response)
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        yield json.loads(line.removeprefix("data:"))
        except httpx.TransportError as error:
            raise UnreachableError(f"{self.url} does not respond ({error})") from error

    async def download(self, path: str, to: Path, *, params: Mapping[str, Any] | None = None) -> None:
        """Save a large response to a file. The file appears only when it is complete."""
        part = to.with_name(f".{to.name}.part")
        try:
            async with self._http.stream("GET", path, params=params, headers={"Accept": "*/*"}) as response:
                await self._raise_for_error(response)
                with part.open("wb") as file:
                    async for piece in response.aiter_bytes():
                        file.write(piece)
            part.replace(to)
        except httpx.TransportError as error:
            raise UnreachableError(f"{self.url} does not respond ({error})") from error
        finally:
            part.unlink(missing_ok=True)

    async def send(
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
                response = await self._http.request(method, path, params=params, json=body, headers=all_headers)
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
            await self.pause(pause or 0.0)
        raise AssertionError("unreachable")

    @staticmethod
    async def _raise_for_error(response: httpx.Response) -> None:
        """Raise ApiError if a streamed response is an error, after reading its problem document."""
        if not response.is_success:
            await response.aread()
            wire.checked(response)
