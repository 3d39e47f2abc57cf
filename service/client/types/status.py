"""Shapes of the REST API about status, as the client returns and takes them: dictionaries with known keys.

Written by `make docs` from the OpenAPI document.
"""

from typing_extensions import TypedDict


class Health(TypedDict):
    """The process answers."""

    status: str


class Workers(TypedDict):
    """Workers that take runs, seen within the last 45 seconds. Without one the API still serves, and runs wait."""

    running: int
    stuck: int


class Readiness(TypedDict):
    """The service can serve."""

    status: str
    checks: dict[str, str]
    workers: Workers | None
