"""Scope checks for routes: `dependencies=[READ]`, `[WRITE]`, `[ADMIN]`, or `[BY_METHOD]` (read or write)."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Request

from featurewatch.service.auth.logic import Principal
from featurewatch.service.kit.problems import ForbiddenError, UnauthenticatedError
from featurewatch.service.kit.routing import READING

_ADMIN_PATHS = ("/v1/keys", "/v1/audit")


def check_early(principal: Principal | None, method: str, path: str) -> None:
    """Check the scope of routes below `/v1` before a body is parsed or a transaction starts."""
    if path.startswith(_ADMIN_PATHS):
        _check(principal, "admin")
    elif path.startswith("/v1/"):
        _check(principal, _scope_of(method))


def _check(principal: Principal | None, scope: str) -> Principal:
    if principal is None:
        raise UnauthenticatedError("An API key is required. Send `Authorization: Bearer fw_...`.")
    if scope not in principal.scopes:
        raise ForbiddenError(f"An API key with the scope `{scope}` is required.", code="missing-scope", scope=scope)
    return principal


def _require(scope: str) -> Callable[[Request], Any]:
    async def check(request: Request) -> Principal:
        return _check(_principal(request), scope)

    return check


async def _require_by_method(request: Request) -> Principal:
    return _check(_principal(request), _scope_of(request.method))


def _scope_of(method: str) -> str:
    return "read" if method in READING else "write"


def _principal(request: Request) -> Principal | None:
    return getattr(request.state, "principal", None)


READ = Depends(_require("read"))
WRITE = Depends(_require("write"))
ADMIN = Depends(_require("admin"))
BY_METHOD = Depends(_require_by_method)
Caller = Annotated[Principal, BY_METHOD]
"""Who makes the request; checked once, however many parts of a route ask for it."""
