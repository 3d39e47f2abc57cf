"""ASGI middleware for all requests: id, log line, security headers, body limit and entity tags."""

import hashlib
import re
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featurewatch.service.kit.db import AWAY
from featurewatch.service.kit.ids import new_id
from featurewatch.service.kit.problems import (
    ProblemError,
    TooLargeError,
    UnavailableError,
    UnprocessableError,
    response_for,
)
from featurewatch.service.kit.routing import READING

log = structlog.get_logger("featurewatch.http")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_POLICY_PLAIN = "default-src 'none'; frame-ancestors 'none'"
_POLICY_PAGE = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
_TLS_ONLY = "max-age=31536000"
_QUIET = ("/healthz", "/readyz", "/metrics")
_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
MAX_TAGGED_BYTES = 8_000_000


class RequestContext:
    """The outermost middleware: request id, log line, security headers, and a 500 problem for uncaught errors."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        header = Headers(scope=scope).get("x-request-id", "")
        request_id = header if _REQUEST_ID.fullmatch(header) else new_id("req")
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.bind_contextvars(request_id=request_id)
        start, status = time.perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(MutableHeaders(scope=message), scope, request_id)
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except ProblemError as error:
            await (await _answer(scope, error))(scope, receive, send_with_headers)
        except Exception as error:
            log.exception("request failed", method=scope["method"], path=scope["path"])
            if status:
                raise  # the response has started, so the connection must break
            await (await _answer(scope, _fault(error, request_id)))(scope, receive, send_with_headers)
        finally:
            if scope["path"] not in _QUIET:
                log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    seconds=round(time.perf_counter() - start, 4),
                )
            structlog.contextvars.unbind_contextvars("request_id")


def _fault(error: Exception, request_id: str) -> ProblemError:
    """The problem for an uncaught error."""
    if isinstance(error, AWAY):
        return UnavailableError("The database is not responding.", headers={"Retry-After": "5"})
    return ProblemError(f"Something went wrong on the server. Its log has details under request {request_id}.")


async def _answer(scope: Scope, error: ProblemError) -> Response:
    """The application's response to an error of a route, or a plain one if that fails too."""
    try:
        answer: Response = await scope["app"].exception_handlers[ProblemError](Request(scope), error)
    except Exception:
        log.exception("cannot render a problem", code=error.code)
        answer = response_for(error, scope["path"], scope["state"]["request_id"])
    return answer


def _add_headers(headers: MutableHeaders, scope: Scope, request_id: str) -> None:
    headers["X-Request-ID"] = request_id
    for name, value in _SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    page = headers.get("content-type", "").startswith("text/html")
    headers.setdefault("Content-Security-Policy", _POLICY_PAGE if page else _POLICY_PLAIN)
    if scope["scheme"] == "https":  # or a trusted proxy says so
        headers.setdefault("Strict-Transport-Security", _TLS_ONLY)
    if scope["path"].startswith("/v1"):
        headers.setdefault("Cache-Control", "private, no-cache")


class BodyLimit:
    """Reads the whole body of a write in advance, and rejects bodies over `limit` bytes with 413."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in READING:
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self.limit:
            raise self._refusal()
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.limit:
                raise self._refusal()
        scope.setdefault("state", {})["body"] = bytes(body)
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.app(scope, replay, send)

    def _refusal(self) -> TooLargeError:
        return TooLargeError(f"The body exceeds the limit of {self.limit:,} bytes.")


class StorableText:
    """Rejects the character NUL with 422: Postgres can store it neither in text nor in JSON."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (
            "\0" in scope["path"]
            or b"%00" in scope.get("query_string", b"")
            or _ESCAPED_NUL.search(scope["state"].get("body", b""))
        ):
            raise UnprocessableError("The character NUL (U+0000) cannot be stored.", code="nul-character")
        await self.app(scope, receive, send)


class EntityTags:
    """Adds an ETag to JSON, Markdown and HTML, and answers a matching `If-None-Match` with 304."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or not scope["path"].startswith("/v1"):
            await self.app(scope, receive, send)
            return
        wanted = Headers(scope=scope).get("if-none-match", "")
        start: Message | None = None
        body = bytearray()

        async def tagging(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                if _taggable(message):
                    start = message
                    return
                await send(message)
                return
            if start is None:
                await send(message)
                return
            body.extend(message.get("body", b""))
            if message.get("more_body", False):
                return
            tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            headers = MutableHeaders(scope=start)
            headers["ETag"] = tag
            headers.add_vary_header("Accept")
            if _matches(wanted, tag):
                start["status"] = 304
                for name in ("content-length", "content-type"):
                    del headers[name]
                body.clear()
            await send(start)
            await send({"type": "http.response.body", "body": bytes(body)})

        await self.app(scope, receive, tagging)


def _taggable(start: Message) -> bool:
    headers = Headers(raw=start["headers"])
    kind = headers.get("content-type", "").partition(";")[0]
    length = headers.get("content-length", "")
    return (
        start["status"] == 200
        and "etag" not in headers
        and kind in ("application/json", "text/markdown", "text/html")
        and length.isdecimal()
        and int(length) <= MAX_TAGGED_BYTES
    )


def _matches(wanted: str, tag: str) -> bool:
    """RFC 9110 section 13.1.2: a list of tags or `*`, compared weakly."""
    names = [name.strip().removeprefix("W/") for name in wanted.split(",")]
    return "*" in names or tag in names
