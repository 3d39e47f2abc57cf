"""Renders templates to responses."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from fastapi import Request
from markupsafe import Markup
from starlette.responses import HTMLResponse, RedirectResponse, Response

from featurewatch.service import __version__
from featurewatch.service.alerts import queries as alerts
from featurewatch.service.auth.browser import SECONDS, Visit
from featurewatch.service.features import words
from featurewatch.service.features.sorting import SORTS
from featurewatch.service.kit.sessions import database_of
from featurewatch.service.kit.text import plain
from featurewatch.service.runs.words import details, seen
from featurewatch.service.verdicts.figures import FIGURE, Format, shown_in
from featurewatch.service.verdicts.statuses import CHANGED, PLACES_CHANGED, Places, Status
from featurewatch.service.web import shapes
from featurewatch.service.web.access import cookie_options, may, visit_of
from featurewatch.service.web.plots import Plot, csv_response

FOLDER = Path(__file__).parent
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    # The check for cross-site requests needs the origin of our own forms.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "private, no-cache",
    "Vary": "Cookie, HX-Request",
}


def page(
    request: Request,
    template: str,
    *,
    status: int = 200,
    plots: Sequence[Plot] = (),
    secret: bool = False,
    **values: Any,
) -> Response:
    """A page, or the CSV data of one of its plots for `?csv=<plot>`. secret: no cache may store it."""
    plot_name = request.query_params.get("csv")
    if plot_name is not None and plots:
        return csv_response(plots, plot_name)
    if lacks_cookie(request):
        return reload()
    session = None if is_fragment(request) else getattr(request.state, "page_session", None)
    open_alerts = alerts.count_open(session) if session else 0
    text = _text(request, template, visit_of(request), open_alerts, plots={plot.name: plot for plot in plots}, **values)
    response = HTMLResponse(
        text, status_code=status, headers=_HEADERS | ({"Cache-Control": "no-store"} if secret else {})
    )
    return with_visit(request, response)


def problem_page(request: Request, problem: dict[str, Any], headers: Mapping[str, str]) -> Response:
    """A problem as a page. It may have occurred before the caller was known."""
    if lacks_cookie(request):
        return reload()
    open_alerts = 0
    if may(request, "read") and problem["status"] < 500:  # the database may be what failed
        with database_of(request).read() as session:
            open_alerts = alerts.count_open(session)
    visit = getattr(request.state, "visit", None)
    text = _text(request, "access/problem.html", visit, open_alerts, plots={}, problem=problem)
    return HTMLResponse(text, status_code=problem["status"], headers={**headers, **_HEADERS})


def _text(request: Request, template: str, visit: Visit | None, open_alerts: int, **values: Any) -> str:
    return _environment().get_template(template).render(
        request=request,
        csrf=visit.token if visit else "",
        signed_in=getattr(getattr(request.state, "principal", None), "session_id", None) is not None,
        may_write=may(request, "write"),
        may_admin=may(request, "admin"),
        open_alerts=open_alerts,
        version=__version__,
        **values,
    )  # fmt: skip


def lacks_cookie(request: Request) -> bool:
    """Whether a link on another site led here, for which browsers withhold a strict cookie."""
    cross_site = request.headers.get("sec-fetch-site") == "cross-site"
    return cross_site and request.method == "GET" and getattr(request.state, "visit", None) is None


def reload() -> Response:
    """A page that reloads itself: the browser then sends the cookie, and no new one overwrites it."""
    return bare("access/again.html", _HEADERS)


def bare(template: str, headers: dict[str, str]) -> Response:
    """A page that is the same for every caller."""
    return HTMLResponse(_environment().get_template(template).render(), headers=headers)


def with_visit(request: Request, response: Response) -> Response:
    """The response, with the cookie of a visit that began in this request."""
    if getattr(request.state, "new_visit", False):
        sealed = request.state.visits.seal(request.state.visit)
        response.set_cookie(value=sealed, max_age=SECONDS, **cookie_options(request))
    return response


def back(path: str) -> Response:
    """Redirect to a page after a form was processed."""
    return RedirectResponse(path, status_code=303)


def is_fragment(request: Request) -> bool:
    """Whether htmx requests a part of a page."""
    return request.headers.get("hx-request") == "true"


def address(*parts: str) -> str:
    """A path on this service, with every part escaped."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def static(name: str) -> str:
    """URL of a static file. It contains a digest of the file, so browsers can cache it forever."""
    return f"/static/{name}?{digest(name)}"


@cache
def digest(name: str) -> str:
    """Digest of a static file."""
    return hashlib.sha256((FOLDER / "static" / name).read_bytes()).hexdigest()[:12]


def _moment(value: datetime | None) -> Markup:
    if value is None:
        return Markup('<span class="quiet">never</span>')
    moment = value.astimezone(UTC)
    return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(
        moment.isoformat(timespec="seconds"), moment.strftime("%Y-%m-%d %H:%M:%S"), moment.strftime("%Y-%m-%d %H:%M")
    )


def _number(value: Any, digits: int = 3) -> str:
    """A number with thousands separators; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def _evidence(value: Any) -> str:
    """A value of an alert's evidence: a number, a word, or a list of them or of features."""
    if isinstance(value, Mapping):
        return str(value["id"]) if "id" in value else _pretty(value)
    return ", ".join(map(_evidence, value)) if isinstance(value, list) else _number(value)


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{_number(100 * value)}%"


def _interval(ends: Sequence[float | None] | None) -> str:
    if ends is None:
        return ""
    low, high = ("?" if end is None else f"{end:.2f}" for end in ends)
    return f"{low} to {high}"


def _q(value: float | None) -> str:
    if value is None:
        return "–"
    return "<0.0001" if value < 1e-4 else f"{value:.2g}"


_FORMATS: dict[Format, Callable[[Any], str]] = {"ratio": _ratio, "q": _q, "number": _number}


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _bytes(value: float | None) -> str:
    return "–" if value is None else f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def prepare() -> None:
    """Compile all templates at start-up, which takes a fifth of a second, so that no first visitor waits."""
    for name in _environment().list_templates(filter_func=lambda name: not name.startswith("report.")):
        _environment().get_template(name)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "moment": _moment, "number": _number, "ratio": _ratio, "interval": _interval, "percent": _percent, "q": _q,
        "seconds": _seconds, "bytes": _bytes, "pretty": _pretty, "evidence": _evidence, "plain": plain,
        "passage": words.passage, "details": details, "seen": seen,
        "formatted": lambda value, kind: _FORMATS[kind](value),
    }  # fmt: skip
    environment.globals |= {
        "static": static, "address": address, "GLYPHS": shapes.GLYPHS, "bar": shapes.bar, "shade": shapes.shade,
        "colour": shapes.colour, "STATUSES": tuple(Status), "CHANGED": CHANGED, "SORTS": SORTS,
        "PLACES": tuple(Places), "PLACES_CHANGED": PLACES_CHANGED, "LISTED_FIGURES": shown_in("page"), "FIGURE": FIGURE,
        "script_statuses": [{"word": one.value, "sign": one.row.sign, "colour": one.row.colour} for one in Status],
    }  # fmt: skip
    return environment
