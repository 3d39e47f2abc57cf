"""`/v1/families/{family}/signatures`."""

from fastapi import APIRouter, Response

from featurewatch.service.auth.guard import BY_METHOD
from featurewatch.service.deletions import signatures as deletion
from featurewatch.service.families.lookup import ReadFamily, WriteFamily
from featurewatch.service.kit.pages import Page, Paging
from featurewatch.service.kit.routing import accepted
from featurewatch.service.kit.sessions import AppArtifacts, AppSettings, ReadSession, WriteSession
from featurewatch.service.runs.schemas import view as run_view
from featurewatch.service.signatures import logic
from featurewatch.service.signatures.schemas import SignatureCreated, SignatureIn, SignatureTrajectory, SignatureView

router = APIRouter(prefix="/v1/families/{family}/signatures", tags=["signatures"], dependencies=[BY_METHOD])


@router.post("", status_code=202, summary="Create a signature from a contrast set")
def create_signature(
    family: WriteFamily,
    body: SignatureIn,
    session: WriteSession,
    artifacts: AppArtifacts,
    settings: AppSettings,
    response: Response,
) -> SignatureCreated:
    """The signature is read in every judged checkpoint, the baseline first, and in each new one from now on."""
    row, queued = logic.create(session, settings, artifacts, family, body)
    accepted(response, f"/v1/families/{family.name}/signatures/{row.name}")
    return SignatureCreated(
        signature=logic.view(session, family, row), runs=[run_view(run, family.name, name) for run, name in queued]
    )


@router.get("", summary="List the signatures of a family by name")
def list_signatures(family: ReadFamily, session: ReadSession, paging: Paging) -> Page[SignatureView]:
    return logic.page(session, family, paging)


@router.get("/{signature}", summary="Get a signature with its newest reading")
def get_signature(family: ReadFamily, signature: str, session: ReadSession) -> SignatureView:
    return logic.view(session, family, logic.get(session, family, signature))


@router.get("/{signature}/trajectory", summary="Get a signature over all checkpoints")
def trajectory(family: ReadFamily, signature: str, session: ReadSession) -> SignatureTrajectory:
    return logic.trajectory(session, logic.get(session, family, signature))


@router.delete("/{signature}", status_code=204, summary="Delete a signature and its readings")
def delete_signature(family: WriteFamily, signature: str, session: WriteSession) -> None:
    deletion.delete(session, family, logic.get(session, family, signature))
