"""API keys. Only for administrators."""

from datetime import timedelta

from fastapi import Request
from starlette.responses import Response

from featurewatch.service.auth import logic
from featurewatch.service.auth.guard import ADMIN
from featurewatch.service.auth.schemas import KeyIn
from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.pages import Paging
from featurewatch.service.kit.problems import UnprocessableError
from featurewatch.service.kit.sessions import ReadSession, WriteSession
from featurewatch.service.web.access import SentForm, pages, validated
from featurewatch.service.web.render import back, page

router = pages(guard=ADMIN)

MAX_DAYS = 36_500


@router.get("/keys")
def list_keys(request: Request, session: ReadSession, paging: Paging) -> Response:
    keys = logic.page(session, paging)
    return page(request, "access/keys.html", rows=keys.data, next_cursor=keys.next_cursor, new_key=None)


@router.post("/keys")
def create_key(request: Request, session: WriteSession, form: SentForm) -> Response:
    days = form.optional("days")
    expires = None if days is None else utcnow() + timedelta(days=_days(days))
    body = validated(KeyIn, name=form.text("name"), scopes=[form.text("scope") or "read"], expires_at=expires)
    row, key = logic.create(session, name=body.name, scopes=body.scopes, expires_at=body.expires_at)
    return page(request, "access/keys.html", rows=[], next_cursor=None, new_key=row, key=key, secret=True, status=201)


@router.post("/keys/{key_id}/revoke")
def revoke_key(key_id: str, session: WriteSession) -> Response:
    logic.revoke(session, key_id)
    return back("/keys")


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = 0.0
    if not 0 < days <= MAX_DAYS:
        raise UnprocessableError(
            f"days: enter a number above 0 and up to {MAX_DAYS:,}, or leave it empty for a key that never expires."
        )
    return days
