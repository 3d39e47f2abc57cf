"""Shapes of the REST API about keys, as the client returns and takes them: dictionaries with known keys.

Written by `make docs` from the OpenAPI document.
"""

from typing import Literal

from typing_extensions import TypedDict


class NewKey(TypedDict):
    """A new API key. Only this response contains the key itself."""

    id: str
    name: str
    prefix: str
    scopes: list[Literal["read", "write", "admin"]]
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None
    key: str


class Key(TypedDict):
    """An API key without its secret part."""

    id: str
    name: str
    prefix: str
    scopes: list[Literal["read", "write", "admin"]]
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None
