"""Shapes of the REST API about status, as the client returns and takes them: dictionaries with known keys.

Written by `make docs` from the OpenAPI document.
"""

from typing_extensions import TypedDict


class Health(TypedDict):
    """The process is responding."""

    status: str


class Workers(TypedDict):
    """Workers seen within the last 45 seconds. Without workers the API still responds, and runs wait."""

    running: int
    stuck: int


class Readiness(TypedDict):
    """The service is ready."""

    status: str
    checks: dict[str, str]
    workers: Workers | None
