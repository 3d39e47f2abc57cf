"""Signing in with an API key, and out."""

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Query, Request
from starlette.responses import RedirectResponse, Response

from service.auth import logic
from service.auth.browser import begin
from service.kit.problems import UnauthenticatedError
from service.kit.sessions import ReadSession
from service.web.access import SentForm, cookie_options, pages
from service.web.render import page, with_visit

router = pages(guard=None)

HOME = "/families"


@router.get("/login")
def show_login(request: Request, next_: Annotated[str, Query(alias="next", max_length=4000)] = HOME) -> Response:
    if request.state.principal is not None:
        return RedirectResponse(_own(next_), status_code=303)
    return page(request, "access/login.html", next=_own(next_), problem=None)


@router.post("/login")
def sign_in(request: Request, session: ReadSession, form: SentForm) -> Response:
    target = _own(form.one("next"))
    try:
        principal = logic.authenticate(session, form.one("key"))
    except UnauthenticatedError as error:
        return page(request, "access/login.html", status=401, next=target, problem=error.detail)
    # The audit log is to have who it was; and a token that was known before the key was given opens nothing after.
    request.state.principal, request.state.visit, request.state.new_visit = principal, begin(principal.id), True
    return with_visit(request, RedirectResponse(target, status_code=303))


@router.post("/logout")
def sign_out(request: Request, form: SentForm) -> Response:
    response = RedirectResponse("/login", status_code=303)
    options = cookie_options(request)
    response.delete_cookie(options.pop("key"), **options)
    return response


def _own(target: str) -> str:
    """A path of this service; the home page for anything else, such as another site."""
    parts = urlsplit(target)
    local = target.startswith("/") and not target.startswith(("//", "/\\")) and not parts.scheme and not parts.netloc
    return target if local and target.isprintable() and "\\" not in target else HOME
