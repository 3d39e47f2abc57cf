"""`/v1/families/{family}/features/labels`."""

from fastapi import APIRouter, Response

from service.auth.guard import BY_METHOD
from service.kit.sessions import WriteSession
from service.labels import logic
from service.labels.schemas import LabelIn
from service.runs.schemas import RunView, view

router = APIRouter(prefix="/v1/families/{family}/features/labels", tags=["features"], dependencies=[BY_METHOD])

RETRY_AFTER_S = 5


@router.post("", status_code=202, summary="Have features labelled by the model that the settings name")
def label(family: str, body: LabelIn, session: WriteSession, response: Response) -> RunView:
    """A run of the kind `label`. Passages of the probe corpus go to the endpoint of FEATUREWATCH_LABEL_URL. Labels are
    text for people: no verdict uses them."""
    run, checkpoint = logic.create(session, family, body)
    response.headers["Location"] = f"/v1/runs/{run.id}"
    response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return view(run, family, checkpoint)
