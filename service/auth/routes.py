"""`/v1/keys`: API keys."""

from fastapi import APIRouter, Response

from featurewatch.service.auth import logic
from featurewatch.service.auth.guard import ADMIN
from featurewatch.service.auth.schemas import KeyIn, KeyOut, NewKeyOut
from featurewatch.service.kit.pages import Page, Paging
from featurewatch.service.kit.sessions import ReadSession, WriteSession

router = APIRouter(prefix="/v1/keys", tags=["keys"], dependencies=[ADMIN])


@router.post("", status_code=201, summary="Create an API key; it is shown only in this response")
def create_key(body: KeyIn, session: WriteSession, response: Response) -> NewKeyOut:
    row, key = logic.create(session, name=body.name, scopes=body.scopes, expires_at=body.expires_at)
    response.headers["Location"] = f"/v1/keys/{row.id}"
    response.headers["Cache-Control"] = "no-store"
    return NewKeyOut(**KeyOut.model_validate(row).model_dump(), key=key)


@router.get("", summary="List API keys, newest first")
def list_keys(session: ReadSession, paging: Paging) -> Page[KeyOut]:
    return logic.page(session, paging)


@router.get("/{key_id}", summary="Get an API key")
def get_key(key_id: str, session: ReadSession) -> KeyOut:
    return KeyOut.model_validate(logic.get(session, key_id))


@router.delete("/{key_id}", status_code=204, summary="Revoke an API key")
def revoke_key(key_id: str, session: WriteSession) -> Response:
    logic.revoke(session, key_id)
    return Response(status_code=204)
