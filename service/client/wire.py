"""What the client's two transports have in common: paths, answers, and how long to wait before the next try."""

import email.utils
import ipaddress
import random
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2 as httpx

from featurewatch.service import __version__
from featurewatch.service.client.errors import ApiError, ClientError
from featurewatch.service.kit.clock import utcnow
from featurewatch.service.runs.states import FINAL

RETRIED = frozenset({429, 502, 503, 504})
LONGEST_WAIT_S = 120.0
"""Who is asked to come back later than this is told so at once."""
PAGE_LIMIT = 500
FINAL_STATES = FINAL


def options(url: str, key: str, timeout: float) -> dict[str, Any]:
    """How to connect; ClientError where the URL is none."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise ClientError(f"{url!r} is no URL of a service; one looks like http://127.0.0.1:8000")
    headers = {"User-Agent": f"featurewatch/{__version__}", "Accept": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    # A proxy of the environment cannot reach this machine's loopback interface.
    return {"base_url": url.rstrip("/"), "headers": headers, "timeout": timeout, "trust_env": not _is_loopback(url)}


def headers_of(method: str, given: Mapping[str, str] | None) -> dict[str, str]:
    """Headers of one call, the same at each try: what is sent again happens once."""
    key = {"Idempotency-Key": f'"{uuid.uuid4().hex}"'} if method in ("POST", "PATCH") else {}
    return dict(given or {}) | key


def pause_before(attempt: int, response: httpx.Response | None) -> float | None:
    """Seconds until the next try: growing, with jitter, and no less than Retry-After; None: do not try again."""
    pause = min(0.25 * 2**attempt, 8.0) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
    asked = 0.0 if response is None else _retry_after(response)
    return None if asked > LONGEST_WAIT_S else max(pause, asked)


def checked(response: httpx.Response) -> httpx.Response:
    """The answer, or ApiError with its problem document."""
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
    """Path of a resource, its parts escaped."""
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def given(**values: Any) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the service asks to wait, as a number or a date; 0 where it does not say."""
    text = response.headers.get("Retry-After", "").strip()
    try:
        return max(float(text), 0.0)
    except ValueError:
        pass
    try:
        return max((email.utils.parsedate_to_datetime(text) - utcnow()).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return 0.0


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
