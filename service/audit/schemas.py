"""JSON of the audit log."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field


class AuditEntryOut(BaseModel):
    """One successful write."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    at: datetime
    actor: str = Field(
        description="Id of the API key, `anonymous` if no keys are required, or `server` for a command on the server."
    )
    method: str
    path: str
    status: int
    request_id: str
