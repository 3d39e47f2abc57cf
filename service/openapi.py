"""The OpenAPI document, in which every operation lists its possible problem documents."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from featurewatch.service.audit import idempotency
from featurewatch.service.kit.problems import MEDIA_TYPE, ProblemDocument
from featurewatch.service.verdicts.statuses import Status

*_FIRST, _LAST = Status
DESCRIPTION = f"""\
Continuous monitoring of the features of a model family. Register a checkpoint; workers judge every feature in it:
{", ".join(_FIRST)} or {_LAST}.

* Send an API key as `Authorization: Bearer fw_...`.
* Errors are problem documents (RFC 9457) with a stable `code`.
* Lists are `{{"data": [...], "next_cursor": ...}}`, with `Link: rel="next"`.
* Reads return an `ETag`; send it back as `If-None-Match`.
* A POST or PATCH repeated with the same `Idempotency-Key` is carried out once; responses are kept for a day by default.
* `RateLimit` and `RateLimit-Policy` give the remaining requests of a key; 429 responses have `Retry-After`.
"""
_OPEN = ("/healthz", "/readyz")
_SCHEMA = {"$ref": "#/components/schemas/Problem"}
_TITLES = {
    "400": "Bad request",
    "401": "No valid API key",
    "403": "The API key lacks the required scope",
    "404": "Not found",
    "409": "Conflict",
    "413": "Request body too large",
    "422": "The request does not match its schema, or cannot be processed",
    "429": "Too many requests",
    "500": "Internal error",
}


def install(app: FastAPI) -> None:
    """Give the app its OpenAPI document, built on first use."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _build(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = schema.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = ProblemDocument.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs", {})
    schemas["Problem"] = problem
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "bearerFormat": "fw_...", "description": "An API key."}
    }
    for path, operations in schema.get("paths", {}).items():
        for method, operation in operations.items():
            _describe(path, method, operation)
    return schema


def _describe(path: str, method: str, operation: dict[str, Any]) -> None:
    statuses = {"500"}
    if path not in _OPEN:
        operation["security"] = [{"key": []}]
        statuses |= {"401", "403", "422", "429"}
    if "{" in path:
        statuses.add("404")
    if method != "get" or "{family}" in path:
        statuses.add("409")  # e.g. a checkpoint that is not judged yet
    if method != "get":
        statuses.add("413")
    idempotent = method.upper() in idempotency.METHODS
    if idempotent or any(parameter["name"] == "cursor" for parameter in operation.get("parameters", [])):
        statuses.add("400")
    if idempotent:
        operation.setdefault("parameters", []).append(_IDEMPOTENCY)
    responses = operation["responses"]
    for status in sorted(statuses | {status for status in responses if status >= "400"}):
        described = responses.get(status, {})
        responses[status] = {
            "description": described.get("description") or _TITLES[status],
            "content": {MEDIA_TYPE: {"schema": _SCHEMA}},
        }
        if status == "422":
            responses[status]["description"] = _TITLES[status]


_IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "maxLength": 255},
    "description": "A request repeated with the same key is carried out once and gets the same response.",
}
