"""Shapes of the REST API about runs, as the client returns and takes them: dictionaries with known keys.

Written by `make docs` from the OpenAPI document.
"""

from typing import Any, Literal

from typing_extensions import TypedDict

from featurewatch.service.client.types.checkpoints import RunFault, RunState, Usage


class Attempt(TypedDict):
    """One attempt at a run by a worker."""

    number: int
    worker: str
    outcome: RunState | None
    error: RunFault | None
    usage: Usage
    started_at: str
    ended_at: str | None


Level = Literal["info", "warning", "error"]


class LogLine(TypedDict):
    """One line of a run's log."""

    number: int
    attempt: int
    at: str
    level: Level
    event: str
    fields: dict[str, Any]
