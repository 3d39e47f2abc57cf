"""What a page's routes depend on: who looks at it, and the form that was sent."""

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
MOST_FIELDS = 200


class Form:
    """The fields of a form, `application/x-www-form-urlencoded`."""

    def __init__(self, fields: dict[str, list[str]]) -> None:
        self._fields = fields

    def one(self, name: str) -> str:
        """The text of a field; empty where it was not sent."""
        return self._fields.get(name, [""])[-1].strip()

    def some(self, name: str) -> str | None:
        """The text of a field; None where nothing was written into it."""
        return self.one(name) or None

    def all(self, name: str) -> list[str]:
        """Every value of a field that may be chosen several times."""
        return [value for value in self._fields.get(name, []) if value]


async def _form(request: Request) -> Form:
    """Raises 403 for a form that did not come from one of our pages, 422 for one that is none."""
    if request.method in READING:
        return Form({})
    try:
        text = request.state.body.decode("utf-8")
        fields = parse_qs(text, keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
    except ValueError:
        raise UnprocessableError("This form could not be read. Reload the page and submit it again.") from None
    form = Form(fields)
    visit: Visit | None = request.state.visit
    if visit is None or not visit.knows(form.one("csrf")):
        raise ForbiddenError(
            "This form has expired or was not sent from a page of this service. Go back, reload the page and submit it "
            "again.",
            code="foreign-form",
        )
    if any("\0" in value for values in fields.values() for value in values):
        raise UnprocessableError("The character NUL (U+0000) cannot be stored.", code="nul-character")
    return form


SentForm = Annotated[Form, Depends(_form)]


async def _reading(request: Request, session: ReadSession) -> None:
    """The route's own session, for what stands on every page."""
    request.state.reading = session


def pages(guard: Any = BY_METHOD) -> APIRouter:
    """A router of pages: for who may read, or write by method; None: for everybody. Forms must come from our pages."""
    return APIRouter(
        include_in_schema=False, dependencies=[*([guard, Depends(_reading)] if guard else []), Depends(_form)]
    )


def filled(model: type[Model], **values: Any) -> Model:
    """A request as the API takes it, from a form. Raises 422 with what is wrong, for people."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = [(".".join(str(part) for part in one["loc"]), one["msg"]) for one in error.errors()]
        said = "; ".join(f"{where or 'form'}: {what.removeprefix('Value error, ')}" for where, what in faults[:5])
        raise UnprocessableError(said, code="invalid-form", title="Invalid form") from None


def visit_of(request: Request) -> Visit:
    """The visit of this request's browser; begun here where it has none."""
    if request.state.visit is None:
        request.state.visit, request.state.new_visit = begin(), True
    visit: Visit = request.state.visit
    return visit


def may(request: Request, scope: str) -> bool:
    """Whether who looks at a page may do more than read it."""
    principal: Principal | None = getattr(request.state, "principal", None)
    return principal is not None and scope in principal.scopes


def cookie_options(request: Request) -> dict[str, Any]:
    """Name and attributes of the cookie."""
    scheme = request.url.scheme
    return {
        "key": cookie_name(scheme),
        "path": "/",
        "httponly": True,
        "samesite": "strict",
        "secure": scheme == "https",
    }
