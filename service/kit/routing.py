"""Which methods an application has at a path."""

from collections.abc import Iterable

from starlette.routing import Match
from starlette.types import Scope

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
READING = ("GET", "HEAD", "OPTIONS")
"""Methods that do not change anything."""


def methods_at(scope: Scope, methods: Iterable[str] = METHODS) -> list[str]:
    """The methods of a request's path, out of `methods`. Each method has a route of its own."""
    routes = scope["app"].routes
    scopes = ({**scope, "method": method} for method in methods)
    return [each["method"] for each in scopes if any(route.matches(each)[0] is Match.FULL for route in routes)]
