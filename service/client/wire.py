"""What the two transports of the client share: paths, responses, and the pauses between retries."""

import ipaddress
import random
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2 as httpx

from featurewatch.service import __version__
from featurewatch.service.client.errors import ApiError, ClientError
from featurewatch.service.kit.clock import seconds_of, utcnow

RETRIED = frozenset({429, 502, 503, 504})
MAX_WAIT_SECONDS = 120.0
"""A longer Retry-After is not waited for: the error is raised at once."""
PAGE_LIMIT = 500


def options(url: str, key: str, timeout: float) -> dict[str, Any]:
    """Options of the HTTP client. ClientError if the URL is invalid."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise ClientError(f"invalid service URL {url!r}; use one like http://127.0.0.1:8000")
    headers = {"User-Agent": f"featurewatch/{__version__}", "Accept": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    # A proxy from the environment cannot reach the loopback interface of this machine.
    return {"base_url": url.rstrip("/"), "headers": headers, "timeout": timeout, "trust_env": not _is_loopback(url)}


def headers_of(method: str, given: Mapping[str, str] | None) -> dict[str, str]:
    """Headers of a call. Retries send the same Idempotency-Key, so that a write happens only once."""
    key = {"Idempotency-Key": f'"{uuid.uuid4().hex}"'} if method in ("POST", "PATCH") else {}
    return dict(given or {}) | key


def pause_before(attempt: int, response: httpx.Response | None) -> float | None:
    """Seconds to wait before a retry: exponential backoff with jitter, at least Retry-After. None: do not retry."""
    pause = min(0.25 * 2**attempt, 8.0) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
    header = None if response is None else response.headers.get("Retry-After")
    retry_after = seconds_of(header, utcnow()) or 0.0
    return None if retry_after > MAX_WAIT_SECONDS else max(pause, retry_after)


def checked(response: httpx.Response) -> httpx.Response:
    """The response, or ApiError with its problem document."""
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


def path_of(*parts: str) -> str:
    """Path of a resource, with its parts escaped."""
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def given(**values: Any) -> dict[str, Any]:
    """The arguments that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
