"""How the client talks HTTP: retries, pages, downloads."""

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
    """A connection to one service. `key` is needed unless the service runs on loopback without keys.

    `timeout` is for one request, in seconds; `retries` is how often one is sent again.
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
        """All rows of a list, page by page."""
        query = {"limit": wire.PAGE_LIMIT} | dict(params or {})
        while True:
            page = await self.json("GET", path, params=query)
            for row in page["data"]:
                yield row
            if not page.get("next_cursor"):
                return
            query["cursor"] = page["next_cursor"]

    async def json(self, method: str, path: str, **options: Any) -> Any:
        """A request's answer as JSON; options as those of `send`."""
        return (await self.send(method, path, **options)).json()

    async def events(self, path: str) -> AsyncIterator[Any]:
        """The data of server-sent events, until the service ends them."""
        try:
            # No limit between two of them: the service says something every few seconds.
            async with self._http.stream("GET", path, headers={"Accept": "text/event-stream"}) as response:
                await self._whole_error(response)
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        yield json.loads(line.removeprefix("data:"))
        except httpx.TransportError as error:
            raise UnreachableError(f"{self.url} does not answer ({error})") from error

    async def download(self, path: str, to: Path, *, params: Mapping[str, Any] | None = None) -> None:
        """A large answer into a file, which is there whole or not at all."""
        part = to.with_name(f".{to.name}.part")
        try:
            async with self._http.stream("GET", path, params=params, headers={"Accept": "*/*"}) as response:
                await self._whole_error(response)
                with part.open("wb") as file:
                    async for piece in response.aiter_bytes():
                        file.write(piece)
            part.replace(to)
        except httpx.TransportError as error:
            raise UnreachableError(f"{self.url} does not answer ({error})") from error
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
        """One request, sent again where that may help. Raises ApiError or UnreachableError."""
        sent = wire.headers_of(method, headers)
        for attempt in range(self.retries + 1):
            response = None
            try:
                response = await self._http.request(method, path, params=params, json=body, headers=sent)
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
            await self.pause(pause or 0.0)
        raise AssertionError("unreachable")

    @staticmethod
    async def _whole_error(response: httpx.Response) -> None:
        """ApiError where a stream begins with one; its problem document is read to the end first."""
        if not response.is_success:
            await response.aread()
            wire.checked(response)
