"""The alerts inbox and the alert rules."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import Query, Request
from starlette.responses import Response

from featurewatch.service.alerts import logic
from featurewatch.service.alerts.conditions import KINDS
from featurewatch.service.alerts.parameters import Parameter, parameters
from featurewatch.service.alerts.schemas import AlertRuleCreate, AlertRuleUpdate, AlertState, MuteBody, view
from featurewatch.service.kit.pages import Pager, Paging
from featurewatch.service.kit.sessions import ReadSession, WriteSession
from featurewatch.service.web.access import Form, SentForm, pages, validated
from featurewatch.service.web.render import address, back, is_fragment, page

router = pages()

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
    alerts = logic.alerts(session, paging, family=family or None, state=chosen)
    template = "notify/alert_rows.html" if is_fragment(request) else "notify/alerts.html"
    rules = [] if is_fragment(request) else logic.rules(session, Pager.first_page(request)).data
    return page(
        request, template, rows=alerts.data, next_cursor=alerts.next_cursor, state=state, family=family or "",
        states=[*AlertState, "all"], mutes=MUTES, rules=rules, kinds=KINDS, fields=_fields(),
    )  # fmt: skip


@router.get("/alerts/{alert_id}")
def show_alert(request: Request, alert_id: str, session: ReadSession) -> Response:
    return page(request, "notify/alert.html", alert=view(*logic.get(session, alert_id)), mutes=MUTES)


@router.post("/alerts/{alert_id}/ack")
def acknowledge(request: Request, alert_id: str, session: WriteSession, form: SentForm) -> Response:
    logic.acknowledge(session, logic.get(session, alert_id)[0])
    return _return(request, alert_id, form)


@router.post("/alerts/{alert_id}/mute")
def mute(request: Request, alert_id: str, session: WriteSession, form: SentForm) -> Response:
    logic.mute(session, logic.get(session, alert_id)[0], validated(MuteBody, hours=form.optional("hours")))
    return _return(request, alert_id, form)


@router.post("/alerts/{alert_id}/resolve")
def resolve(request: Request, alert_id: str, session: WriteSession, form: SentForm) -> Response:
    logic.resolve(session, logic.get(session, alert_id)[0])
    return _return(request, alert_id, form)


@router.post("/alerts/{alert_id}/reopen")
def reopen(request: Request, alert_id: str, session: WriteSession, form: SentForm) -> Response:
    logic.reopen(session, logic.get(session, alert_id)[0])
    return _return(request, alert_id, form)


@router.post("/alert-rules")
def create_rule(request: Request, session: WriteSession, form: SentForm) -> Response:
    kind = form.text("kind")
    names = [parameter.name for parameter, kinds in _fields() if kind in kinds]
    # An empty field is omitted: an optional parameter has a default, and a required one is reported as missing.
    condition = {"kind": kind} | {name: value for name in names if (value := form.optional(name))}
    body = validated(AlertRuleCreate, name=form.text("name"), family=form.optional("family"), condition=condition)
    logic.create_rule(session, body)
    return back("/alerts#rules")


@router.post("/alert-rules/{rule_id}")
def change_rule(request: Request, rule_id: str, session: WriteSession, form: SentForm) -> Response:
    rule, _ = logic.get_rule(session, rule_id)
    if form.text("do") == "delete":
        session.delete(rule)
    else:
        logic.change_rule(session, rule, AlertRuleUpdate(enabled=form.text("do") == "enable"))
    return back("/alerts#rules")


def _fields() -> list[tuple[Parameter, list[str]]]:
    """The parameters that the form asks for, each with the kinds of rules that have it."""
    fields: dict[str, tuple[Parameter, list[str]]] = {}
    for kind, cls in KINDS.items():
        for parameter in parameters(cls):
            if not parameter.many:
                fields.setdefault(parameter.name, (parameter, []))[1].append(kind)
    return list(fields.values())


def _return(request: Request, alert_id: str, form: Form) -> Response:
    """Redirect to the alert, or to the list with its filters."""
    if form.text("from") == "alert":
        return back(address("alerts", alert_id))
    filters = {name: form.text(name) for name in ("state", "family") if form.text(name)}
    return back("/alerts" + (f"?{urlencode(filters)}" if filters else ""))
