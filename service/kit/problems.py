"""Errors of the API: RFC 9457 problem documents, every one of them.

An error is a class that carries its status and its code; raise it anywhere below a route. `code` is stable and says
what happened; `type` is `/problems/<code>`; `detail` is written for people.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from featurewatch.service.kit.routing import methods_at

MEDIA_TYPE = "application/problem+json"


class FieldProblem(BaseModel):
    """An error in a request: where it is, and what is wrong."""

    location: str = Field(description="body, query, path or header.")
    pointer: str = Field(description="JSON pointer into the body, or the name of the parameter.")
    code: str = Field(description="Machine-readable kind of error.")
    detail: str = Field(description="What is wrong, for people.")


class ProblemDocument(BaseModel):
    """RFC 9457 problem document. `errors` is present if the request does not match its schema."""

    model_config = ConfigDict(title="Problem", extra="allow")

    type: str = Field(description="`/problems/<code>`, stable.", examples=["/problems/not-found"])
    title: str
    status: int
    code: str = Field(examples=["not-found"])
    detail: str
    instance: str = Field(description="Path of the request.")
    request_id: str | None = Field(None, description="Also in the `X-Request-ID` header and in the server's logs.")
    errors: list[FieldProblem] | None = None


class ProblemError(Exception):
    """Base class of all errors that a request may end with. `extra` members are added to the document."""

    status: int = 500
    code: str = "internal-error"
    title: str = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        title: str | None = None,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.code
        self.title = title or self.title
        self.status = status or self.status
        self.headers = dict(headers or {})
        self.extra = extra


class BadRequestError(ProblemError):
    status, code, title = 400, "bad-request", "Bad request"


class UnauthenticatedError(ProblemError):
    status, code, title = 401, "unauthenticated", "No valid API key"

    def __init__(self, detail: str, **options: Any) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": 'Bearer realm="featurewatch"'}, **options)


class ForbiddenError(ProblemError):
    status, code, title = 403, "forbidden", "Not allowed"


class NotFoundError(ProblemError):
    status, code, title = 404, "not-found", "Not found"


class NotAcceptableError(ProblemError):
    status, code, title = 406, "not-acceptable", "Format not available"


class ConflictError(ProblemError):
    status, code, title = 409, "conflict", "Conflict"


class TooLargeError(ProblemError):
    status, code, title = 413, "content-too-large", "Request body too large"


class UnprocessableError(ProblemError):
    status, code, title = 422, "unprocessable", "The request cannot be processed"


class TooManyRequestsError(ProblemError):
    status, code, title = 429, "too-many-requests", "Too many requests"


class UnavailableError(ProblemError):
    status, code, title = 503, "unavailable", "Currently unavailable"


def response_for(error: ProblemError, path: str, request_id: str | None) -> Response:
    """The response for an error. Its `extra` members cannot override standard ones."""
    document = error.extra | {
        "type": f"/problems/{error.code}",
        "title": error.title,
        "status": error.status,
        "code": error.code,
        "detail": error.detail,
        "instance": path,
    }
    if request_id:
        document["request_id"] = request_id
    return JSONResponse(document, status_code=error.status, headers=error.headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Turn the errors of `app` into problem documents. The request middleware handles unexpected ones."""
    for kind in (ProblemError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, answer)


async def answer(request: Request, error: Exception) -> Response:
    """The problem document for an error of one of the classes in `install`."""
    if isinstance(error, HTTPException):
        error = _from_http(request, error)
    elif isinstance(error, RequestValidationError):
        error = _from_validation(error)
    assert isinstance(error, ProblemError)
    return response_for(error, request.url.path, getattr(request.state, "request_id", None))


def _from_http(request: Request, error: HTTPException) -> ProblemError:
    """Errors of the framework: unknown routes, wrong methods, unreadable bodies."""
    title = HTTPStatus(error.status_code).phrase
    detail, headers = str(error.detail), dict(error.headers or {})
    if error.status_code == 404 and detail == title:
        detail = f"There is nothing at {request.url.path}."
    elif error.status_code == 405:
        detail = f"{request.method} is not allowed at {request.url.path}."
        headers["Allow"] = ", ".join(methods_at(request.scope))
    code = title.lower().replace(" ", "-")
    return ProblemError(detail, status=error.status_code, code=code, title=title, headers=headers)


def _from_validation(error: RequestValidationError) -> ProblemError:
    faults = [_fault(item) for item in error.errors()]
    summary = "; ".join(f"{fault['pointer'] or fault['location']}: {fault['detail']}" for fault in faults[:5])
    title = "The request does not match its schema"
    return UnprocessableError(summary, code="invalid-request", title=title, errors=faults)


def _fault(item: Mapping[str, Any]) -> dict[str, str]:
    location: Sequence[Any] = item.get("loc", ())
    where = str(location[0]) if location else "body"
    rest = [str(part) for part in location[1:]]
    if item["type"] == "json_invalid":
        rest = []  # it contains the parser's offset, which is not a pointer
    pointer = "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in rest)
    return {
        "location": where,
        "pointer": pointer if where == "body" else ".".join(rest),
        "code": str(item["type"]),
        # Our own validators raise ValueError, for which pydantic adds a prefix.
        "detail": str(item["msg"]).removeprefix("Value error, "),
    }
