"""Methods of a path, and the headers of an accepted request."""

from collections.abc import Iterable

from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
READING = ("GET", "HEAD", "OPTIONS")
"""Methods that only read."""


def methods_at(scope: Scope, methods: Iterable[str] = METHODS) -> list[str]:
    """The `methods` that the path of a request supports. Each has its own route, so no route knows them all."""
    routes = scope["app"].routes
    scopes = ({**scope, "method": method} for method in methods)
    return [each["method"] for each in scopes if any(route.matches(each)[0] is Match.FULL for route in routes)]


def accepted(response: Response, location: str, *, retry_after: int = 5) -> None:
    """Tell the client where to poll for the result of a request, and after how many seconds."""
    response.headers["Location"] = location
    response.headers["Retry-After"] = str(retry_after)
