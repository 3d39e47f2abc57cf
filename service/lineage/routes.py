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


@router.get("/lineage", summary="What re-fits made of the features: carried, retired, split, merged, new")
def list_lineage(
    family: ReadFamily,
    session: ReadSession,
    paging: Paging,
    generation: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="Left out: all.")] = None,
    kind: Annotated[LinkKind | None, Query(description="Left out: all.")] = None,
) -> Page[LineageLink]:
    order = f"lineage:{family.id}:{generation}:{kind}"
    rows = queries.page(
        session, family.id, generation=generation, kind=kind, after=paging.after(order), limit=paging.limit
    )
    kept, cursor = paging.page(rows, order, lambda pair: (pair[0].generation, pair[0].id))
    return Page(data=[link(row, name) for row, name in kept], next_cursor=cursor)
