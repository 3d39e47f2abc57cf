"""`/v1/audit`: who wrote what, when."""

from typing import Annotated

from fastapi import APIRouter, Query

from featurewatch.service.audit import queries
from featurewatch.service.audit.schemas import AuditEntryOut
from featurewatch.service.auth.guard import ADMIN
from featurewatch.service.kit.pages import Page, Paging, SortKey
from featurewatch.service.kit.sessions import ReadSession
from featurewatch.service.models import AuditEntry

router = APIRouter(prefix="/v1/audit", tags=["audit"], dependencies=[ADMIN])


@router.get("", summary="List the audit log, newest first")
def list_entries(
    session: ReadSession, paging: Paging, actor: Annotated[str | None, Query(description="Id of an API key.")] = None
) -> Page[AuditEntryOut]:
    keys = [SortKey(AuditEntry.at, descending=True), SortKey(AuditEntry.id, descending=True)]
    return paging.fetch(session, queries.entries(actor), keys, f"audit:{actor}", AuditEntryOut.model_validate)
