"""What a route requires: `dependencies=[READ]`, `[WRITE]`, `[ADMIN]`, or `BY_METHOD` (reading or writing)."""

from collections.abc import Callable
from typing import Any

from fastapi import Depends, Request

from service.auth.logic import Principal
from service.kit.problems import ForbiddenError, UnauthenticatedError


def _check(request: Request, scope: str) -> None:
    principal: Principal | None = getattr(request.state, "principal", None)
    if principal is None:
        raise UnauthenticatedError("This needs an API key: send `Authorization: Bearer fw_...`.")
    if scope not in principal.scopes:
        raise ForbiddenError(f"This needs an API key with the scope `{scope}`.", code="missing-scope", scope=scope)


def _require(scope: str) -> Callable[[Request], Any]:
    async def check(request: Request) -> None:
        _check(request, scope)

    return check


async def _require_by_method(request: Request) -> None:
    _check(request, "read" if request.method in ("GET", "HEAD", "OPTIONS") else "write")


READ = Depends(_require("read"))
WRITE = Depends(_require("write"))
ADMIN = Depends(_require("admin"))
BY_METHOD = Depends(_require_by_method)
