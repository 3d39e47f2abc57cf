"""The web interface: page routes, static files and error pages."""

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
from featurewatch.service.web.render import FOLDER, digest, is_fragment, lacks_cookie, prepare, problem_page, reload
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
_WITHOUT_PAGES = ("/v1", "/metrics", "/healthz", "/readyz", "/openapi.json", "/docs", "/static")
_IMMUTABLE = "public, max-age=31536000, immutable"


class _Static(StaticFiles):
    """Serves files from memory, cached forever, if the URL contains the right digest."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        matches = path in _files() and scope["query_string"] == digest(path).encode()
        if matches and scope["method"] in ("GET", "HEAD"):
            content, kind = _files()[path]
            return Response(content, media_type=kind, headers={"Cache-Control": _IMMUTABLE})
        return await super().get_response(path, scope)


@cache
def _files() -> dict[str, tuple[bytes, str | None]]:
    """Name -> content and media type. Kept in memory: serving one from disk occupies several threads."""
    folder = FOLDER / "static"
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), mimetypes.guess_type(path.name)[0]) for path in paths
    }


def install(app: FastAPI) -> None:
    """Add static files and error pages. Call it after `problems.install`, whose handlers it wraps."""
    prepare()
    app.mount("/static", _Static(directory=FOLDER / "static"), name="static")
    for kind in (ProblemError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _on_error)


async def _on_error(request: Request, error: Exception) -> Response:
    """A problem as a page, or as the API returns it if the client did not ask for a page."""
    answer = await problems.answer(request, error)
    wants_page = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith(_WITHOUT_PAGES)
    if not wants_page and not is_fragment(request):
        return answer
    assert answer.media_type == MEDIA_TYPE
    if answer.status_code == 401:
        return _to_sign_in(request)
    headers = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
    return await run_in_threadpool(problem_page, request, json.loads(bytes(answer.body)), headers)


def _to_sign_in(request: Request) -> Response:
    if lacks_cookie(request):
        return reload()
    reading = request.method == "GET" and not is_fragment(request)
    path = f"{request.url.path}?{request.url.query}".removesuffix("?") if reading else "/families"
    target = f"/login?next={quote(path, safe='')}"
    if is_fragment(request):  # a redirect would put the sign-in form in place of the fragment
        return Response(status_code=204, headers={"HX-Redirect": target})
    return RedirectResponse(target, status_code=303)
