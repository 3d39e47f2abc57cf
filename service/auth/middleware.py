"""Authentication: reads a request's bearer key or a browser's cookie into `request.state.principal`.

If no keys are required, every caller on the loopback address is an administrator. That includes any web page open in a
browser on that machine, so such a service responds only to host names that no other site can have (against DNS
rebinding) and refuses writes started by other sites' pages.
"""

import ipaddress
from urllib.parse import urlsplit

import structlog
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featurewatch.service.auth import logic, queries
from featurewatch.service.auth.browser import Visit, Visits, cookie_name
from featurewatch.service.auth.guard import check_early
from featurewatch.service.auth.limits import RateLimits, network_of
from featurewatch.service.auth.logic import Principal
from featurewatch.service.config import Settings
from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.db import Database
from featurewatch.service.kit.problems import BadRequestError, ForbiddenError, UnauthenticatedError
from featurewatch.service.kit.routing import READING

log = structlog.get_logger("featurewatch.auth")

_UNLIMITED = ("/healthz", "/readyz")
"""Health checks are never limited: a probe would mistake 429 for a failing service."""


class Authentication:
    """Sets `state.principal` (None without a key; routes declare what they require) and applies the rate limit."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings, self.visits = app, settings, Visits(settings)
        self.limits = RateLimits(settings.requests_per_minute if settings.require_keys else 0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        database: Database = scope["app"].state.database
        address = network_of(scope["client"][0]) if scope.get("client") else "-"
        visit = self._visit(scope)
        try:
            principal = await self._principal(database, Headers(scope=scope), scope["method"], visit)
        except UnauthenticatedError:
            await self.limits.spend(address)
            raise
        scope.setdefault("state", {}).update(principal=principal, visit=visit, visits=self.visits)
        limit_headers: dict[str, str] = {}
        if scope["path"] not in _UNLIMITED:
            limit_headers = await self.limits.spend(principal.id if principal else address)
        check_early(principal, scope["method"], scope["path"])

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(limit_headers)
            await send(message)

        await self.app(scope, receive, send_with_limits)
        if principal is not None and principal.note_use:
            async with scope["app"].state.turns.writing:
                await run_in_threadpool(_note_use, database, principal.id)

    def _visit(self, scope: Scope) -> Visit | None:
        """The visit in a browser's cookie. The API ignores cookies."""
        if scope["path"].startswith("/v1"):
            return None
        cookie = cookie_parser(Headers(scope=scope).get("cookie", "")).get(cookie_name(scope["scheme"]))
        return self.visits.open(cookie) if cookie else None

    async def _principal(
        self, database: Database, headers: Headers, method: str, visit: Visit | None
    ) -> Principal | None:
        if not self.settings.require_keys:
            _refuse_foreign_pages(headers, method)
            return logic.ANONYMOUS
        if "authorization" not in headers:
            if visit is None or visit.session_id is None:
                return None
            return await run_in_threadpool(_returning, database, visit.session_id)
        return await run_in_threadpool(_authenticate, database, _bearer(headers["authorization"]))


def _bearer(header: str) -> str:
    scheme, _, key = header.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise UnauthenticatedError("Send the API key as `Authorization: Bearer fw_...`.")
    return key.strip()


def _authenticate(database: Database, key: str) -> Principal:
    with database.read() as session:
        return logic.authenticate(session, key)


def _returning(database: Database, session_id: str) -> Principal | None:
    with database.read() as session:
        return logic.returning(session, session_id)


def _note_use(database: Database, key_id: str) -> None:
    try:
        with database.write() as session:
            queries.note_use(session, key_id, utcnow())
    except SQLAlchemyError:
        log.warning("could not record the use of an API key", key=key_id, exc_info=True)


def _refuse_foreign_pages(headers: Headers, method: str) -> None:
    host = headers.get("host", "")
    if not _is_local_name(host):
        raise BadRequestError(
            "This service runs without API keys, so it responds only to requests for localhost or a loopback address, "
            f"not for {host!r}. Use http://127.0.0.1 with its port, or require keys (FEATUREWATCH_REQUIRE_KEYS=true).",
            code="foreign-host",
        )
    if method in READING:
        return
    origin = headers.get("origin")
    crossed = headers.get("sec-fetch-site") in ("cross-site", "same-site")
    if crossed or (origin is not None and urlsplit(origin).netloc != host):
        raise ForbiddenError("Requests from pages of other sites are not allowed to write.", code="foreign-origin")


def _is_local_name(host: str) -> bool:
    """Whether a Host header names this machine: `localhost`, a subdomain of it, or a loopback address.

    Any other name may belong to another site (DNS rebinding).
    """
    try:
        parts = urlsplit(f"//{host}")
        name = (parts.hostname or "").removesuffix(".")
    except ValueError:
        return False
    if parts.netloc != host or parts.username is not None:
        return False
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
