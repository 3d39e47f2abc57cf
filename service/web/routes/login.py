"""Sign in with an API key, and sign out."""

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Query, Request
from sqlalchemy.orm import Session
from starlette.responses import RedirectResponse, Response

from featurewatch.service.auth import logic, queries
from featurewatch.service.auth.browser import begin
from featurewatch.service.kit.problems import UnauthenticatedError
from featurewatch.service.kit.sessions import WriteSession
from featurewatch.service.web.access import SentForm, cookie_options, pages
from featurewatch.service.web.render import page, with_visit

router = pages(guard=None)

HOME = "/families"


@router.get("/login")
def show_login(request: Request, next_: Annotated[str, Query(alias="next", max_length=4000)] = HOME) -> Response:
    if request.state.principal is not None:
        return RedirectResponse(_own(next_), status_code=303)
    return page(request, "access/login.html", next=_own(next_), problem=None)


@router.post("/login")
def sign_in(request: Request, session: WriteSession, form: SentForm) -> Response:
    target = _own(form.text("next"))
    try:
        principal = logic.authenticate(session, form.text("key"))
    except UnauthenticatedError as error:
        return page(request, "access/login.html", status=401, next=target, problem=error.detail)
    _end(request, session)
    # The audit log reads the principal. A new visit makes tokens from before the sign-in worthless.
    visit = begin(logic.sign_in(session, principal).id)
    request.state.principal, request.state.visit, request.state.new_visit = principal, visit, True
    return with_visit(request, RedirectResponse(target, status_code=303))


@router.post("/logout")
def sign_out(request: Request, session: WriteSession) -> Response:
    _end(request, session)
    response = RedirectResponse("/login", status_code=303)
    options = cookie_options(request)
    response.delete_cookie(options.pop("key"), **options)
    return response


def _end(request: Request, session: Session) -> None:
    """End the browser's session, which also makes copies of its cookie worthless."""
    if request.state.visit.session_id is not None:
        queries.end_session(session, request.state.visit.session_id)


def _own(target: str) -> str:
    """The target if it is a path on this service, else the home page."""
    parts = urlsplit(target)
    local = target.startswith("/") and not target.startswith(("//", "/\\")) and not parts.scheme and not parts.netloc
    return target if local and target.isprintable() and "\\" not in target else HOME
