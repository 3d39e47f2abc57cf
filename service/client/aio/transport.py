"""HTTP for the client: retries, pagination, downloads."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
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

    # A method's arguments and the API's parameters have the same names; None means that an argument is omitted.

    async def _get(self, *path: str, **params: Any) -> Any:
        return await self.json("GET", wire.path_of(*path), params=wire.given(**params))

    async def _post(self, *path: str, **body: Any) -> Any:
        return await self.json("POST", wire.path_of(*path), body=wire.given(**body) if body else None)

    async def _patch(self, *path: str, **body: Any) -> Any:
        return await self.json("PATCH", wire.path_of(*path), body=wire.given(**body))

    async def _delete(self, *path: str, **params: Any) -> None:
        await self.send("DELETE", wire.path_of(*path), params=wire.given(**params))

    def _list(self, *path: str, **params: Any) -> AsyncIterator[Any]:
        return self.pages(wire.path_of(*path), wire.given(**params))

    async def events(self, path: str) -> AsyncIterator[Any]:
        """Yield the data of server-sent events until the service ends the stream."""
        # The service sends at least a comment every few seconds, well within the timeout.
        async with self._streamed(path, "text/event-stream") as response:
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    yield json.loads(line.removeprefix("data:"))

    async def download(self, path: str, to: Path, *, params: Mapping[str, Any] | None = None) -> None:
        """Save a large response to a file. The file appears only when it is complete."""
        part = to.with_name(f".{to.name}.part")
        try:
            async with self._streamed(path, "*/*", params) as response:
                with part.open("wb") as file:
                    async for piece in response.aiter_bytes():
                        file.write(piece)
            part.replace(to)
        finally:
            part.unlink(missing_ok=True)

    @asynccontextmanager
    async def _streamed(
        self, path: str, accept: str, params: Mapping[str, Any] | None = None
    ) -> AsyncIterator[httpx.Response]:
        """A response to read piece by piece. Raises ApiError or UnreachableError."""
        try:
            async with self._http.stream("GET", path, params=params, headers={"Accept": accept}) as response:
                if not response.is_success:
                    await response.aread()
                yield wire.checked(response)
        except httpx.TransportError as error:
            raise UnreachableError(f"{self.url} does not respond ({error})") from error

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
            pause = wire.pause_before(attempt, response)
            if response is not None and (
                response.status_code not in wire.RETRIED or pause is None or attempt == self.retries
            ):
                return wire.checked(response)
            await self.pause(pause or 0.0)
        raise AssertionError("unreachable")
