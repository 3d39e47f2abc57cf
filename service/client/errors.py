"""Errors of the client."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurewatch.service.client.types import Run


class ClientError(Exception):
    """Base class of all errors that a call may raise."""


class ApiError(ClientError):
    """An error response, with the members of its problem document. `detail` is for people, `code` for programs."""

    def __init__(self, status: int, code: str, title: str, detail: str, document: Mapping[str, Any]) -> None:
        super().__init__(f"{title}: {detail}" if detail else title)
        self.status, self.code, self.title, self.detail = status, code, title, detail
        self.document = dict(document)


class UnreachableError(ClientError):
    """The service does not respond, or not in time, even after retries."""


class WaitTimeoutError(ClientError):
    """A run did not end in time. It continues; `run` is its last known state."""

    def __init__(self, run: "Run", seconds: float) -> None:
        super().__init__(f"run {run['id']} is still {run['state']} after {seconds:.0f} s")
        self.run = run
