"""Dependencies of page routes: the signed-in caller and the submitted form."""

from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ValidationError

from featurewatch.service.auth.browser import Visit, begin, cookie_name
from featurewatch.service.auth.guard import BY_METHOD
from featurewatch.service.auth.logic import Principal
from featurewatch.service.kit.problems import ForbiddenError, UnprocessableError
from featurewatch.service.kit.routing import READING
from featurewatch.service.kit.sessions import ReadSession

Model = TypeVar("Model", bound=BaseModel)
MAX_FIELDS = 200


class Form:
    """The fields of a submitted form, `application/x-www-form-urlencoded`."""

    def __init__(self, fields: dict[str, list[str]]) -> None:
        self._fields = fields

    def text(self, name: str) -> str:
        """The text of a field; empty if it was not sent."""
        return self._fields.get(name, [""])[-1].strip()

    def optional(self, name: str) -> str | None:
        """The text of a field; None if it was left empty."""
        return self.text(name) or None

    def all(self, name: str) -> list[str]:
        """All non-empty values of a field that can be sent several times."""
        return [value for value in self._fields.get(name, []) if value]


async def _form(request: Request) -> Form:
    """The submitted form. Raises 403 without a valid CSRF token and 422 for an unreadable body."""
    if request.method in READING:
        return Form({})
    try:
        text = request.state.body.decode("utf-8")
        fields = parse_qs(text, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
    except ValueError:
        raise UnprocessableError("This form could not be read. Reload the page and submit it again.") from None
    form = Form(fields)
    visit: Visit | None = request.state.visit
    if visit is None or not visit.knows(form.text("csrf")):
        raise ForbiddenError(
            "This form has expired or was not sent from a page of this service. Go back, reload the page and submit it "
            "again.",
            code="foreign-form",
        )
    if any("\0" in value for values in fields.values() for value in values):
        raise UnprocessableError("The character NUL (U+0000) cannot be stored.", code="nul-character")
    return form


SentForm = Annotated[Form, Depends(_form)]


async def _share_session(request: Request, session: ReadSession) -> None:
    """Share the route's session with `render.page`, which counts the open alerts on every page."""
    request.state.page_session = session


def pages(guard: Any = BY_METHOD) -> APIRouter:
    """A router for pages. Every form needs a valid CSRF token. guard: who may call its routes; None for everyone."""
    return APIRouter(
        include_in_schema=False, dependencies=[*([guard, Depends(_share_session)] if guard else []), Depends(_form)]
    )


def validated(model: type[Model], **values: Any) -> Model:
    """A request model built from form values. Raises 422 with a readable list of what is invalid."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        errors = [(".".join(map(str, fault["loc"])) or "form", fault["msg"]) for fault in error.errors()]
        detail = "; ".join(f"{field}: {message.removeprefix('Value error, ')}" for field, message in errors[:5])
        raise UnprocessableError(detail, code="invalid-form", title="Invalid form") from None


def visit_of(request: Request) -> Visit:
    """The visit of this request's browser; begins one if there is none."""
    if request.state.visit is None:
        request.state.visit, request.state.new_visit = begin(), True
    visit: Visit = request.state.visit
    return visit


def may(request: Request, scope: str) -> bool:
    """Whether the caller has a scope."""
    principal: Principal | None = getattr(request.state, "principal", None)
    return principal is not None and scope in principal.scopes


def cookie_options(request: Request) -> dict[str, Any]:
    """Name and attributes of the session cookie."""
    scheme = request.url.scheme
    return {
        "key": cookie_name(scheme),
        "path": "/",
        "httponly": True,
        "samesite": "strict",
        "secure": scheme == "https",
    }
