"""`/v1/families/{family}/signatures`."""

from fastapi import APIRouter, Response

from featurewatch.service.auth.guard import BY_METHOD
from featurewatch.service.families import logic as families
from featurewatch.service.kit.pages import Page, Paging
from featurewatch.service.kit.sessions import AppArtifacts, AppSettings, ReadSession, WriteSession
from featurewatch.service.runs.schemas import view as run_view
from featurewatch.service.signatures import logic, queries
from featurewatch.service.signatures.schemas import SignatureCourse, SignatureCreated, SignatureIn, SignatureView

router = APIRouter(prefix="/v1/families/{family}/signatures", tags=["signatures"], dependencies=[BY_METHOD])

RETRY_AFTER_S = 5


@router.post("", status_code=202, summary="Watch a concept that a contrast set shows")
def create_signature(
    family: str,
    body: SignatureIn,
    session: WriteSession,
    artifacts: AppArtifacts,
    settings: AppSettings,
    response: Response,
) -> SignatureCreated:
    """Reads it in every judged checkpoint, the baseline first, and from now on in each new one."""
    row, queued = logic.create(session, settings, artifacts, family, body)
    response.headers["Location"] = f"/v1/families/{family}/signatures/{row.name}"
    response.headers["Retry-After"] = str(RETRY_AFTER_S)
    found = families.get(session, family)
    return SignatureCreated(
        signature=logic.view(session, found, row), runs=[run_view(run, found.name, name) for run, name in queued]
    )


@router.get("", summary="Signatures of a family, by name")
def list_signatures(family: str, session: ReadSession, paging: Paging) -> Page[SignatureView]:
    found = families.get(session, family)
    order = f"signatures:{found.id}"
    rows = queries.page(session, found.id, after=paging.after(order), limit=paging.limit)
    kept, cursor = paging.page(rows, order, lambda row: (row.name,))
    return Page(data=[logic.view(session, found, row) for row in kept], next_cursor=cursor)


@router.get("/{signature}", summary="One signature, with its newest reading")
def get_signature(family: str, signature: str, session: ReadSession) -> SignatureView:
    found = families.get(session, family)
    return logic.view(session, found, logic.get(session, found, signature))


@router.get("/{signature}/trajectory", summary="One signature over all checkpoints")
def trajectory(family: str, signature: str, session: ReadSession) -> SignatureCourse:
    found = families.get(session, family)
    return logic.course(session, logic.get(session, found, signature))


@router.delete("/{signature}", status_code=204, summary="Forget a signature and its readings")
def delete_signature(family: str, signature: str, session: WriteSession) -> None:
    found = families.get(session, family)
    logic.delete(session, found, logic.get(session, found, signature))
