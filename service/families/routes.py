"""`/v1/families`."""

from fastapi import APIRouter, Response

from featurewatch.service.auth.guard import ADMIN, BY_METHOD
from featurewatch.service.calibrations import logic as calibrations
from featurewatch.service.deletions import families as deletion
from featurewatch.service.families import logic
from featurewatch.service.families.lookup import ReadFamily, WriteFamily
from featurewatch.service.families.schemas import FamilyIn, FamilyOut
from featurewatch.service.kit.pages import Page, Paging
from featurewatch.service.kit.sessions import AppSettings, ReadSession, WriteSession

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
    return calibrations.with_latest(session, [family])[0]


@router.get("", summary="List families by name")
def list_families(session: ReadSession, paging: Paging) -> Page[FamilyOut]:
    rows, cursor = logic.page(session, paging)
    return Page(data=calibrations.with_latest(session, rows), next_cursor=cursor)


@router.get("/{family}", summary="Get a family")
def get_family(family: ReadFamily, session: ReadSession) -> FamilyOut:
    return calibrations.with_latest(session, [family])[0]


@router.delete("/{family}", status_code=204, summary="Delete a family", dependencies=[ADMIN])
def delete_family(family: WriteFamily, session: WriteSession) -> None:
    """Deletes the family with its checkpoints, features, runs, alerts, artifacts and copy of the corpus. It disappears
    at once and its name is free; rows and artifacts are removed within minutes. Requires the scope `admin`."""
    deletion.delete(session, family)
