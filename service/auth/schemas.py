"""JSON of API keys."""

from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator

from featurewatch.service.kit.clock import utcnow

Scope = Literal["read", "write", "admin"]


class KeyIn(BaseModel):
    """A key to be made."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=100, description="What it is for.")
    scopes: list[Scope] = Field(["read"], min_length=1, description="`write` includes `read`, `admin` both.")
    expires_at: AwareDatetime | None = Field(None, description="Null: never.")

    @field_validator("expires_at")
    @classmethod
    def _in_future(cls, value: datetime | None) -> datetime | None:
        if value is not None and value <= utcnow():
            raise ValueError("lies in the past")
        return value


class KeyOut(BaseModel):
    """A key, without its secret part."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    name: str
    prefix: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class NewKeyOut(KeyOut):
    """A key that was just made: the only answer that shows it."""

    key: str
