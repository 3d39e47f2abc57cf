"""Idempotency keys: a POST or PATCH that is sent twice with the same `Idempotency-Key` happens once.

The header is that of the IETF draft `The Idempotency-Key HTTP Header Field`: a quoted string of a structured field.
The quotes may be left out, as most clients do.
The key is taken at the start of the request's own transaction, so an answer is remembered if and only if its work was
committed, and of two requests at the same time the second one waits for the first and then repeats its answer.
Answers with an error status are not remembered: nothing happened, and the next try may succeed.
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from starlette.responses import Response

from featurewatch.service.audit import queries
from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.problems import BadRequestError, ConflictError, UnprocessableError
from featurewatch.service.models import IdempotencyRecord

METHODS = ("POST", "PATCH")
_IN_PROGRESS = 0
_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
_KEPT_HEADERS = ("content-type", "location", "retry-after", "link")


@dataclass(frozen=True)
class Claim:
    """A key that this request holds, or the remembered answer of the request that held it before."""

    record: IdempotencyRecord | None
    replay: Response | None


def fingerprint(method: str, path: str, query: bytes, body: bytes) -> str:
    """Digest of a request: the same key must always come with the same one."""
    return hashlib.sha256(b"\0".join([method.encode(), path.encode(), query, body])).hexdigest()


def claim(session: Session, *, caller: str, header: str, request: str, hours: float) -> Claim:
    """Take the key for this request. `request` is its fingerprint; answers are remembered for so many `hours`.

    Raises 400 for a header that is no key, 422 where the key came with another request, 409 where the answer held a
    secret that is shown once only.
    """
    quoted = _QUOTED.fullmatch(header)
    name = quoted[1] if quoted else header
    if not 1 <= len(name) <= 255 or not name.isascii() or not name.isprintable():
        raise BadRequestError("An Idempotency-Key has 1 to 255 printable characters.", code="bad-idempotency-key")
    key = f"{caller}:{name}"
    queries.drop_records_before(session, utcnow() - timedelta(hours=hours))
    found = queries.find_record(session, key)
    if found is None:
        record = IdempotencyRecord(key=key, fingerprint=request, status=_IN_PROGRESS, headers={}, body="")
        try:
            queries.add_record(session, record)
            return Claim(record, None)
        except IntegrityError:
            session.rollback()
            found = queries.find_record(session, key)
    if found is None:
        raise ConflictError("A request with this Idempotency-Key is under way; try again.", code="idempotency-busy")
    return Claim(None, _replay(found, request))


def remember(record: IdempotencyRecord, status: int, headers: dict[str, str], body: bytes) -> None:
    """Keep the answer, in the transaction that did the work. Secrets (`no-store`) are not kept."""
    record.status = status
    record.headers = {name: headers[name] for name in _KEPT_HEADERS if name in headers}
    secret = "no-store" in headers.get("cache-control", "")
    record.headers |= {"x-secret": "yes"} if secret else {}
    record.body = "" if secret else body.decode("utf-8")


def _replay(record: IdempotencyRecord, request: str) -> Response:
    if record.fingerprint != request:
        raise UnprocessableError(
            "This Idempotency-Key came with another request before; take a new key for a new request.",
            code="idempotency-key-reused",
            title="Idempotency key used for another request",
        )
    if "x-secret" in record.headers:
        raise ConflictError(
            "This request was carried out before. Its answer held a secret, which is shown once only.",
            code="secret-shown-once",
        )
    headers = {**record.headers, "Idempotency-Replayed": "true"}
    return Response(record.body.encode(), status_code=record.status, headers=headers)
