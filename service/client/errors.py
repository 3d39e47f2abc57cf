"""What a call of the client may raise."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurewatch.service.client.types import Run


class ClientError(Exception):
    """Base of everything that a call may raise."""


class ApiError(ClientError):
    """The service said no: the members of its problem document. `detail` is for people, `code` for programs."""

    def __init__(self, status: int, code: str, title: str, detail: str, document: Mapping[str, Any]) -> None:
        super().__init__(f"{title}: {detail}" if detail else title)
        self.status, self.code, self.title, self.detail = status, code, title, detail
        self.document = dict(document)


class UnreachableError(ClientError):
    """Nothing answers at the URL, or not in time, although it was tried again."""


class WaitTimeoutError(ClientError):
    """A run was not over in time. It goes on: `run` is how it stood."""

    def __init__(self, run: "Run", seconds: float) -> None:
        super().__init__(f"run {run['id']} is still {run['state']} after {seconds:.0f} s")
        self.run = run
