"""JSON of the audit log."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field


class AuditEntryOut(BaseModel):
    """One write that was carried out."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    at: datetime
    actor: str = Field(description="Id of the API key; `anonymous`: none is needed; `server`: a command there.")
    method: str
    path: str
    status: int
    request_id: str
