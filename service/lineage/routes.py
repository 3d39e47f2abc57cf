"""`/v1/families/{family}/lineage`."""

from typing import Annotated

from fastapi import APIRouter, Query

from featurewatch.service.auth.guard import BY_METHOD
from featurewatch.service.families.lookup import ReadFamily
from featurewatch.service.kit.pages import Page, Paging
from featurewatch.service.kit.sessions import ReadSession
from featurewatch.service.lineage import queries
from featurewatch.service.lineage.schemas import LineageLink, LinkKind, link

router = APIRouter(prefix="/v1/families/{family}", tags=["features"], dependencies=[BY_METHOD])


@router.get("/lineage", summary="List how re-fits carried features over: carried, retired, split, merged or new")
def list_lineage(
    family: ReadFamily,
    session: ReadSession,
    paging: Paging,
    generation: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="Default: all.")] = None,
    kind: Annotated[LinkKind | None, Query(description="Default: all.")] = None,
) -> Page[LineageLink]:
    order = f"lineage:{family.id}:{generation}:{kind}"
    statement = queries.links(family.id, generation=generation, kind=kind)
    return paging.fetch(session, statement, queries.OLDEST_FIRST, order, link)
