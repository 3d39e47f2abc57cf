"""One transaction per writing request, with its audit entry, committed before the response is sent.

The response is held back until the commit has succeeded. A status of 400 or more rolls back.
"""

import structlog
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featurewatch.service.audit import idempotency
from featurewatch.service.kit.problems import ConflictError, UnavailableError
from featurewatch.service.kit.routing import READING, methods_at
from featurewatch.service.kit.turns import WriteTurn
from featurewatch.service.models import AuditEntry, IdempotencyRecord

log = structlog.get_logger("featurewatch.audit")


class Transactions:
    """Gives each writing request a `request.state.write_session` and ends its transaction."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in READING:
            await self.app(scope, receive, send)
            return
        session: Session = scope["app"].state.database.open_write()
        turn = WriteTurn(scope["app"].state.turns)
        scope["state"] |= {"write_session": session, "write_turn": turn}
        try:
            await self._within(session, turn, scope, receive, send)
        except IntegrityError as error:
            log.warning("write conflict", error=str(error.orig))
            raise ConflictError("A concurrent request changed the same resource. Try again.") from error
        except OperationalError as error:
            log.exception("database not available")
            raise UnavailableError(
                "The database cannot accept writes right now. Try again later.", headers={"Retry-After": "5"}
            ) from error
        finally:
            try:
                await run_in_threadpool(session.close)
            finally:
                turn.give_back()

    async def _within(self, session: Session, turn: WriteTurn, scope: Scope, receive: Receive, send: Send) -> None:
        record: IdempotencyRecord | None = None
        method = scope["method"]
        key = Headers(scope=scope).get("idempotency-key") if method in idempotency.METHODS else None
        principal = scope["state"].get("principal")
        # Requests without a caller or a route are refused anyway, and keys belong to a caller.
        if key is not None and principal is not None and methods_at(scope, [method]):
            request = idempotency.fingerprint(
                method, scope["path"], scope.get("query_string", b""), scope["state"]["body"]
            )
            hours = scope["app"].state.settings.answer_hours
            await turn.take()
            claimed = await run_in_threadpool(
                idempotency.claim, session, caller=principal.id, header=key, request=request, hours=hours
            )
            if isinstance(claimed, Response):
                await claimed(scope, receive, send)
                return
            record = claimed
        response = _HeldResponse()
        await self.app(scope, receive, response.hold)
        if response.status < 400:
            await turn.take()
            await run_in_threadpool(_commit, session, scope, response, record)
        for message in response.messages:
            await send(message)


class _HeldResponse:
    """A response that waits for the commit."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.status = 500

    async def hold(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self.messages.append(message)

    def headers(self) -> dict[str, str]:
        return dict(Headers(raw=self.messages[0]["headers"]).items())

    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])


def _commit(session: Session, scope: Scope, response: _HeldResponse, record: IdempotencyRecord | None) -> None:
    """Add the audit entry, store the response for replay, and commit."""
    principal = scope["state"].get("principal")
    entry = AuditEntry(
        actor=principal.id if principal else "-",
        method=scope["method"],
        path=scope["path"],
        status=response.status,
        request_id=scope["state"]["request_id"],
    )
    session.add(entry)
    if record is not None:
        idempotency.remember(record, response.status, response.headers(), response.body())
    session.commit()
