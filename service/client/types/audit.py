"""Shapes of the REST API about audit, as the client returns and takes them: dictionaries with known keys.

Written by `make docs` from the OpenAPI document.
"""

from typing_extensions import TypedDict


class AuditEntry(TypedDict):
    """One successful write."""

    id: str
    at: str
    actor: str
    method: str
    path: str
    status: int
    request_id: str
