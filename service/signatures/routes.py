"""`/v1/families/{family}/signatures`."""

from fastapi import APIRouter, Response

from featurewatch.service.auth.guard import BY_METHOD
from featurewatch.service.families import logic as families
from featurewatch.service.kit.pages import Page, Paging
from featurewatch.service.kit.sessions import AppArtifacts, AppSettings, ReadSession, WriteSession
from featurewatch.service.runs.schemas import view as run_view
from featurewatch.service.signatures import logic, queries
from featurewatch.service.signatures.schemas import SignatureCreated, SignatureIn, SignatureTrajectory, SignatureView

router = APIRouter(prefix="/v1/families/{family}/signatures", tags=["signatures"], dependencies=[BY_METHOD])

RETRY_AFTER_S = 5


@router.post("", status_code=202, summary="Create a signature from a contrast set")
def create_signature(
    family: str,
    body: SignatureIn,
    session: WriteSession,
    artifacts: AppArtifacts,
    settings: AppSettings,
    response: Response,
) -> SignatureCreated:
    """The signature is read in every judged checkpoint, the baseline first, and in each new one from now on."""
    row, queued = logic.create(session, settings, artifacts, family, body)
    response.headers["Location"] = f"/v1/families/{family}/signatures/{row.name}"
    response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return SignatureCreated(
        signature=logic.view(session, families.get(session, family), row),
        runs=[run_view(run, family, name) for run, name in queued],
    )


@router.get("", summary="List the signatures of a family by name")
def list_signatures(family: str, session: ReadSession, paging: Paging) -> Page[SignatureView]:
    row = families.get(session, family)
    order = f"signatures:{row.id}"
    fetched = queries.page(session, row.id, after=paging.after(order), limit=paging.limit)
    signatures, cursor = paging.page(fetched, order, lambda signature: (signature.name,))
    return Page(data=[logic.view(session, row, signature) for signature in signatures], next_cursor=cursor)


@router.get("/{signature}", summary="Get a signature with its newest reading")
def get_signature(family: str, signature: str, session: ReadSession) -> SignatureView:
    row = families.get(session, family)
    return logic.view(session, row, logic.get(session, row, signature))


@router.get("/{signature}/trajectory", summary="Get a signature over all checkpoints")
def trajectory(family: str, signature: str, session: ReadSession) -> SignatureTrajectory:
    return logic.trajectory(session, logic.get(session, families.get(session, family), signature))


@router.delete("/{signature}", status_code=204, summary="Delete a signature and its readings")
def delete_signature(family: str, signature: str, session: WriteSession) -> None:
    row = families.get(session, family)
    logic.delete(session, row, logic.get(session, row, signature))
