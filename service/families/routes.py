"""`/v1/families`."""

from collections.abc import Sequence

from fastapi import APIRouter, Response
from sqlalchemy.orm import Session

from featurewatch.service.auth.guard import ADMIN, BY_METHOD
from featurewatch.service.calibrations import logic as calibrations
from featurewatch.service.deletions import families as deletion
from featurewatch.service.families import logic, queries
from featurewatch.service.families.schemas import FamilyIn, FamilyOut
from featurewatch.service.kit.pages import Page, Paging
from featurewatch.service.kit.sessions import AppSettings, ReadSession, WriteSession
from featurewatch.service.models import Family

router = APIRouter(prefix="/v1/families", tags=["families"], dependencies=[BY_METHOD])


@router.post(
    "",
    status_code=201,
    summary="Create a family",
    responses={200: {"description": "An identical family already exists.", "model": FamilyOut}},
)
def create_family(body: FamilyIn, session: WriteSession, settings: AppSettings, response: Response) -> FamilyOut:
    family, created = logic.create(session, settings, body)
    if not created:
        response.status_code = 200
    response.headers["Location"] = f"/v1/families/{family.name}"
    return _views(session, [family])[0]


@router.get("", summary="List families by name")
def list_families(session: ReadSession, paging: Paging) -> Page[FamilyOut]:
    fetched = queries.page(session, after=paging.after("families"), limit=paging.limit)
    rows, cursor = paging.page(fetched, "families", lambda row: (row.name,))
    return Page(data=_views(session, rows), next_cursor=cursor)


@router.get("/{family}", summary="Get a family")
def get_family(family: str, session: ReadSession) -> FamilyOut:
    return _views(session, [logic.get(session, family)])[0]


@router.delete("/{family}", status_code=204, summary="Delete a family", dependencies=[ADMIN])
def delete_family(family: str, session: WriteSession) -> None:
    """Deletes the family with its checkpoints, features, runs, alerts, artifacts and copy of the corpus. It disappears
    at once and its name is free; rows and artifacts are removed within minutes. Requires the scope `admin`."""
    deletion.delete(session, logic.get(session, family))


def _views(session: Session, rows: Sequence[Family]) -> list[FamilyOut]:
    latest = calibrations.latest(session, rows)
    return [FamilyOut.model_validate(row).model_copy(update={"calibration": latest.get(row.id)}) for row in rows]
