"""What an application answers at a path."""

from collections.abc import Iterable

from starlette.routing import Match
from starlette.types import Scope

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
READING = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing."""


def methods_at(scope: Scope, methods: Iterable[str] = METHODS) -> list[str]:
    """Those of `methods` that the path of a request has. Each has a route of its own: no route knows them all."""
    routes = scope["app"].routes
    asked = ({**scope, "method": method} for method in methods)
    return [each["method"] for each in asked if any(route.matches(each)[0] is Match.FULL for route in routes)]
