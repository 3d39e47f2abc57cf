"""How the client talks HTTP: retries, pages, and problem documents as exceptions."""

import ipaddress
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx2 as httpx

from service import __version__

RETRIED = frozenset({429, 502, 503, 504})
PAGE_LIMIT = 500


class ClientError(Exception):
    """Base of everything that a call may raise."""


class ApiError(ClientError):
    """The service said no: the members of its problem document. `detail` is for people, `code` for programs."""

    def __init__(self, status: int, code: str, title: str, detail: str, document: Mapping[str, Any]) -> None:
        super().__init__(f"{title}: {detail}" if detail else title)
        self.status, self.code, self.title, self.detail = status, code, title, detail
        self.document = dict(document)


class UnreachableError(ClientError):
    """Nothing answers at the URL, or not in time, although it was tried again."""


class Transport:
    """A connection to one service. `key` is needed unless the service runs on loopback without keys.

    `timeout` is for one request, in seconds; `retries` is how often one is sent again.
    """

    def __init__(self, url: str, key: str = "", *, timeout: float = 30.0, retries: int = 5) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ClientError(f"{url!r} is no URL of a service; one looks like http://127.0.0.1:8000")
        self.url = url.rstrip("/")
        self.retries = retries
        self.pause: Callable[[float], object] = time.sleep
        headers = {"User-Agent": f"featurewatch/{__version__}", "Accept": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        # A proxy of the environment cannot reach this machine's loopback interface.
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=timeout, trust_env=not _is_loopback(self.url)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _t: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def pages(self, path: str, params: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """All rows of a list, page by page."""
        query = dict(params or {}) | {"limit": PAGE_LIMIT}
        while True:
            page = self.json("GET", path, params=query)
            yield from page["data"]
            if not page.get("next_cursor"):
                return
            query["cursor"] = page["next_cursor"]

    def json(self, method: str, path: str, **options: Any) -> Any:
        """A request's answer as JSON; options as those of `send`."""
        return self.send(method, path, **options).json()

    def download(self, path: str, to: Path, *, params: Mapping[str, Any] | None = None) -> None:
        """A large answer into a file, which is there whole or not at all."""
        part = to.with_name(f".{to.name}.part")
        try:
            with self._http.stream("GET", path, params=params, headers={"Accept": "*/*"}) as response:
                if not response.is_success:
                    response.read()
                _checked(response)
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
        sent = dict(headers or {})
        if method == "POST":
            sent["Idempotency-Key"] = f'"{uuid.uuid4().hex}"'
        for attempt in range(self.retries + 1):
            pause = min(0.25 * 2**attempt, 8.0) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
            try:
                response = self._http.request(method, path, params=params, json=body, headers=sent)
            except httpx.TransportError as error:
                if attempt == self.retries:
                    raise UnreachableError(f"{self.url} does not answer ({error})") from error
            except httpx.InvalidURL as error:
                raise UnreachableError(f"{self.url!r} is no URL of a service ({error})") from error
            else:
                if response.status_code not in RETRIED or attempt == self.retries:
                    return _checked(response)
                pause = max(pause, _retry_after(response))
            self.pause(pause)
        raise AssertionError("unreachable")


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_success or response.status_code == httpx.codes.NOT_MODIFIED:
        return response
    try:
        document = response.json()
    except ValueError:
        document = {}
    if not isinstance(document, dict):
        document = {}
    title = str(document.get("title") or response.reason_phrase or f"HTTP {response.status_code}")
    raise ApiError(
        response.status_code, str(document.get("code", "")), title, str(document.get("detail", "")), document
    )


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the service asks to wait, at most a minute; 0 where it does not say."""
    try:
        return min(float(response.headers.get("Retry-After", "0")), 60.0)
    except ValueError:
        return 0.0


def path_of(*parts: str) -> str:
    """Path of a resource, its parts escaped."""
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def given(**values: Any) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
