"""Shapes of the REST API about status, as the client returns and takes them: dictionaries with known keys.

Written by `make docs` from the OpenAPI document.
"""

from typing_extensions import TypedDict


class Health(TypedDict):
    """The process answers."""

    status: str


class Readiness(TypedDict):
    """The service can serve."""

    status: str
    checks: dict[str, str]
