"""Idempotency keys: a POST or PATCH sent twice with the same `Idempotency-Key` is carried out once.

The header follows the IETF draft `The Idempotency-Key HTTP Header Field`, a quoted string of a structured field. The
quotes are optional, because most clients omit them.
The key is claimed at the start of the request's own transaction, so a response is stored if and only if its work is
committed. Of two concurrent requests, the second waits for the first and then replays its response.
Error responses are not stored: nothing happened, and the next try may succeed.
"""

import hashlib
import re
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


def fingerprint(method: str, path: str, query: bytes, body: bytes) -> str:
    """Digest of a request. A key identifies one request."""
    return hashlib.sha256(b"\0".join([method.encode(), path.encode(), query, body])).hexdigest()


def claim(session: Session, *, caller: str, header: str, request: str, hours: float) -> IdempotencyRecord | Response:
    """Claim the key for this request. `request` is its fingerprint; responses are stored for `hours`.

    Returns the record of the claimed key, or the stored response of an earlier request.

    Raises 400 for an invalid header, 422 if the key was used for another request, 409 if the response contained a
    secret, which is shown only once.
    """
    quoted = _QUOTED.fullmatch(header)
    name = quoted[1] if quoted else header
    if not 1 <= len(name) <= 255 or not name.isascii() or not name.isprintable():
        raise BadRequestError(
            "An Idempotency-Key must have 1 to 255 printable ASCII characters.", code="bad-idempotency-key"
        )
    key = f"{caller}:{name}"
    queries.drop_records_before(session, utcnow() - timedelta(hours=hours))
    existing = session.get(IdempotencyRecord, key)
    if existing is None:
        record = IdempotencyRecord(key=key, fingerprint=request, status=_IN_PROGRESS, headers={}, body="")
        try:
            session.add(record)
            session.flush()
            return record
        except IntegrityError:  # another request claimed it first
            session.rollback()
            existing = session.get(IdempotencyRecord, key)
    if existing is None:
        raise ConflictError(
            "A request with this Idempotency-Key is in progress. Try again later.", code="idempotency-busy"
        )
    return _replay(existing, request)


def remember(record: IdempotencyRecord, status: int, headers: dict[str, str], body: bytes) -> None:
    """Store the response in the transaction that did the work. Secrets (`no-store`) are not stored."""
    record.status = status
    record.headers = {name: headers[name] for name in _KEPT_HEADERS if name in headers}
    secret = "no-store" in headers.get("cache-control", "")
    record.headers |= {"x-secret": "yes"} if secret else {}
    record.body = "" if secret else body.decode("utf-8")


def _replay(record: IdempotencyRecord, request: str) -> Response:
    if record.fingerprint != request:
        raise UnprocessableError(
            "This Idempotency-Key was already used for a different request. Use a new key for a new request.",
            code="idempotency-key-reused",
            title="Idempotency key reused",
        )
    if "x-secret" in record.headers:
        raise ConflictError(
            "This request was already carried out. Its response contained a secret, which is shown only once.",
            code="secret-shown-once",
        )
    headers = {**record.headers, "Idempotency-Replayed": "true"}
    return Response(record.body.encode(), status_code=record.status, headers=headers)
