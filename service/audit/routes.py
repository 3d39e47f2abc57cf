"""`/v1/audit`: who wrote what, when."""

from typing import Annotated

from fastapi import APIRouter, Query

from featurewatch.service.audit import queries
from featurewatch.service.audit.schemas import AuditEntryOut
from featurewatch.service.auth.guard import ADMIN
from featurewatch.service.kit.pages import Page, Paging
from featurewatch.service.kit.sessions import ReadSession

router = APIRouter(prefix="/v1/audit", tags=["audit"], dependencies=[ADMIN])


@router.get("", summary="List the audit log, newest first")
def list_entries(
    session: ReadSession, paging: Paging, actor: Annotated[str | None, Query(description="Id of an API key.")] = None
) -> Page[AuditEntryOut]:
    order = f"audit:{actor}"
    fetched = queries.page_of_entries(session, actor=actor, after=paging.after(order), limit=paging.limit)
    rows, cursor = paging.page(fetched, order, lambda row: (row.at, row.id))
    return Page(data=[AuditEntryOut.model_validate(row) for row in rows], next_cursor=cursor)
