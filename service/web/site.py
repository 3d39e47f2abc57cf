"""The pages as a part of the application: their routes, their static files, and what their errors look like."""

import json
import mimetypes
from functools import cache
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from featurewatch.service.kit import problems
from featurewatch.service.kit.problems import MEDIA_TYPE, ProblemError
from featurewatch.service.web.render import FOLDER, cut_off, digest, is_fragment, once_more, prepare, problem_page
from featurewatch.service.web.routes import (
    alerts,
    api,
    checkpoints,
    deletions,
    families,
    features,
    keys,
    login,
    runs,
    signatures,
    webhooks,
)

ROUTERS = tuple(
    part.router
    for part in (login, deletions, families, checkpoints, features, signatures, runs, alerts, webhooks, keys, api)
)
_NO_PAGES = ("/v1", "/metrics", "/healthz", "/readyz", "/openapi.json", "/docs", "/static")
_FOR_EVER = "public, max-age=31536000, immutable"


class _Static(StaticFiles):
    """Files whose address holds a digest of their content."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        named = path in _files() and scope["query_string"] == digest(path).encode()
        if named and scope["method"] in ("GET", "HEAD"):
            content, kind = _files()[path]
            return Response(content, media_type=kind, headers={"Cache-Control": _FOR_EVER})
        return await super().get_response(path, scope)


@cache
def _files() -> dict[str, tuple[bytes, str | None]]:
    """Name -> content and kind. Kept, as they are few: to send one from the disk takes a handful of threads."""
    folder = FOLDER / "static"
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), mimetypes.guess_type(path.name)[0]) for path in found
    }


def install(app: FastAPI) -> None:
    """Add the pages. After `problems.install`: what people meet in a browser is shown as a page."""
    prepare()
    for router in ROUTERS:
        app.include_router(router)
    app.mount("/static", _Static(directory=FOLDER / "static"), name="static")
    for kind in (ProblemError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _on_error)


async def _on_error(request: Request, error: Exception) -> Response:
    """A problem as a page; as the API says it where no page was asked for."""
    answer = await problems.answer(request, error)
    wanted = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith(_NO_PAGES)
    if not wanted and not is_fragment(request):
        return answer
    assert answer.media_type == MEDIA_TYPE
    if answer.status_code == 401:
        return _to_sign_in(request)
    headers = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
    return await run_in_threadpool(problem_page, request, json.loads(bytes(answer.body)), headers)


def _to_sign_in(request: Request) -> Response:
    if cut_off(request):
        return once_more()
    reading = request.method == "GET" and not is_fragment(request)
    path = f"{request.url.path}?{request.url.query}".removesuffix("?") if reading else "/families"
    target = f"/login?next={quote(path, safe='')}"
    if is_fragment(request):  # a redirect would put the form of signing in into the place of the fragment
        return Response(status_code=204, headers={"HX-Redirect": target})
    return RedirectResponse(target, status_code=303)
