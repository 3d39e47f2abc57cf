"""`/v1/families/{family}/calibrations`."""

from fastapi import APIRouter, Response

from featurewatch.service.auth.guard import BY_METHOD
from featurewatch.service.calibrations import logic, queries
from featurewatch.service.calibrations.schemas import CalibrationIn, CalibrationView, view
from featurewatch.service.families.lookup import ReadFamily, WriteFamily
from featurewatch.service.kit.pages import Page, Paging, newest_first
from featurewatch.service.kit.routing import accepted
from featurewatch.service.kit.sessions import ReadSession, WriteSession
from featurewatch.service.models import Run

router = APIRouter(prefix="/v1/families/{family}/calibrations", tags=["calibrations"], dependencies=[BY_METHOD])


@router.post("", status_code=202, summary="Measure how often the family's thresholds raise a false alarm")
def calibrate(family: WriteFamily, body: CalibrationIn, session: WriteSession, response: Response) -> CalibrationView:
    """Judges versions of a checkpoint in which nothing changed. The family does not change, and no alert is raised."""
    run, checkpoint = logic.create(session, family, body)
    accepted(response, f"/v1/families/{family.name}/calibrations/{run.id}")
    return view(run, family.name, checkpoint)


@router.get("", summary="List the calibrations of a family, newest first")
def list_calibrations(family: ReadFamily, session: ReadSession, paging: Paging) -> Page[CalibrationView]:
    statement = queries.of_family(family.name)
    return paging.fetch(session, statement, newest_first(Run), f"calibrations:{family.id}", view)


@router.get("/{calibration}", summary="Get a calibration")
def get_calibration(family: ReadFamily, calibration: str, session: ReadSession) -> CalibrationView:
    return view(*logic.get(session, family, calibration))
