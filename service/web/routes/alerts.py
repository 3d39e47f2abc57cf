"""The alerts inbox, and the rules that fill it."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import Query, Request
from starlette.responses import Response

from featurewatch.service.alerts import listing, logic, queries
from featurewatch.service.alerts.schemas import AlertRuleCreate, AlertRuleUpdate, AlertState, MuteBody, view
from featurewatch.service.kit.pages import Pager, Paging
from featurewatch.service.kit.sessions import ReadSession, WriteSession
from featurewatch.service.web.access import Form, SentForm, filled, pages
from featurewatch.service.web.render import address, back, is_fragment, page

router = pages()

RULES = {
    "watched": "a watched feature changes", "tag": "a feature with this tag changes", "feature": "this feature changes",
    "status_count": "so many features come into this status", "signature": "this signature changes, or any",
    "rewired": "this feature is rewired, or any", "quality": "FVU is over so many times the parent's",
    "run_failed": "a run fails", "absence": "nothing was judged for so many days",
}  # fmt: skip
"""Kinds of conditions, in words."""
FIELDS = {
    "tag": ("tag",), "feature": ("feature",), "status_count": ("status", "at_least"), "signature": ("signature",),
    "rewired": ("feature",), "quality": ("max_fvu_ratio",), "absence": ("days",),
}  # fmt: skip
"""What each kind asks for, as the API names it."""
MUTES = {"24": "for a day", "168": "for a week", "": "until resolved"}


@router.get("/alerts")
def list_alerts(
    request: Request,
    session: ReadSession,
    paging: Paging,
    state: Annotated[str, Query(max_length=20)] = "open",
    family: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    chosen = AlertState(state) if state in set(AlertState) else None
    alerts = listing.alerts(session, paging, family=family or None, state=chosen)
    template = "notify/alert_rows.html" if is_fragment(request) else "notify/alerts.html"
    rules = [] if is_fragment(request) else listing.rules(session, Pager.whole(request)).data
    return page(
        request, template, rows=alerts.data, next_cursor=alerts.next_cursor, state=state, family=family or "",
        states=[*AlertState, "all"], mutes=MUTES, rules=rules, kinds=RULES, fields=FIELDS,
    )  # fmt: skip


@router.get("/alerts/{alert_id}")
def show_alert(request: Request, alert_id: str, session: ReadSession) -> Response:
    return page(request, "notify/alert.html", alert=view(*logic.get(session, alert_id)), mutes=MUTES)


@router.post("/alerts/{alert_id}/ack")
def acknowledge(request: Request, alert_id: str, session: WriteSession, form: SentForm) -> Response:
    logic.acknowledge(session, logic.get(session, alert_id)[0])
    return _settled(request, alert_id, form)


@router.post("/alerts/{alert_id}/mute")
def mute(request: Request, alert_id: str, session: WriteSession, form: SentForm) -> Response:
    logic.mute(session, logic.get(session, alert_id)[0], filled(MuteBody, hours=form.some("hours")))
    return _settled(request, alert_id, form)


@router.post("/alerts/{alert_id}/resolve")
def resolve(request: Request, alert_id: str, session: WriteSession, form: SentForm) -> Response:
    logic.resolve(session, logic.get(session, alert_id)[0])
    return _settled(request, alert_id, form)


@router.post("/alerts/{alert_id}/reopen")
def reopen(request: Request, alert_id: str, session: WriteSession, form: SentForm) -> Response:
    logic.reopen(session, logic.get(session, alert_id)[0])
    return _settled(request, alert_id, form)


@router.post("/alert-rules")
def create_rule(request: Request, session: WriteSession, form: SentForm) -> Response:
    kind = form.one("kind")
    condition = {"kind": kind} | {name: form.some(name) for name in FIELDS.get(kind, ())}
    # A field that was left empty is not given: what may be left out has a default, and what may not is asked for.
    condition = {name: value for name, value in condition.items() if value is not None}
    body = filled(AlertRuleCreate, name=form.one("name"), family=form.some("family"), condition=condition)
    logic.create_rule(session, body)
    return back("/alerts#rules")


@router.post("/alert-rules/{rule_id}")
def change_rule(request: Request, rule_id: str, session: WriteSession, form: SentForm) -> Response:
    rule, _ = logic.get_rule(session, rule_id)
    if form.one("do") == "delete":
        queries.remove_rule(session, rule)
    else:
        logic.change_rule(session, rule, AlertRuleUpdate(enabled=form.one("do") == "enable"))
    return back("/alerts#rules")


def _settled(request: Request, alert_id: str, form: Form) -> Response:
    """Back to the alert, or to the list as it was."""
    if form.one("from") == "alert":
        return back(address("alerts", alert_id))
    shown = {name: form.one(name) for name in ("state", "family") if form.one(name)}
    return back("/alerts" + (f"?{urlencode(shown)}" if shown else ""))
