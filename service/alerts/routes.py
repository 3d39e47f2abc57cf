"""`/v1/alert-rules` and `/v1/alerts`."""

from typing import Annotated

from fastapi import APIRouter, Body, Response

from featurewatch.service.alerts import listing, logic, queries
from featurewatch.service.alerts.schemas import (
    AlertKind,
    AlertRuleCreate,
    AlertRuleUpdate,
    AlertRuleView,
    AlertState,
    AlertView,
    MuteBody,
    rule_view,
    view,
)
from featurewatch.service.auth.guard import BY_METHOD
from featurewatch.service.kit.pages import Page, Paging
from featurewatch.service.kit.sessions import ReadSession, WriteSession

router = APIRouter(prefix="/v1", tags=["alerts"], dependencies=[BY_METHOD])


@router.post(
    "/alert-rules",
    status_code=201,
    summary="Make an alert rule",
    responses={404: {"description": "No such family"}},
)
def create_rule(body: AlertRuleCreate, session: WriteSession, response: Response) -> AlertRuleView:
    """It holds for checkpoints that are judged from now on."""
    rule, family = logic.create_rule(session, body)
    response.headers["Location"] = f"/v1/alert-rules/{rule.id}"
    return rule_view(rule, family)


@router.get("/alert-rules", summary="Alert rules, newest first")
def list_rules(session: ReadSession, paging: Paging, family: str | None = None) -> Page[AlertRuleView]:
    return listing.rules(session, paging, family=family)


@router.get("/alert-rules/{rule_id}", summary="One alert rule")
def get_rule(rule_id: str, session: ReadSession) -> AlertRuleView:
    return rule_view(*logic.get_rule(session, rule_id))


@router.patch("/alert-rules/{rule_id}", summary="Change an alert rule")
def change_rule(rule_id: str, body: AlertRuleUpdate, session: WriteSession) -> AlertRuleView:
    rule, family = logic.get_rule(session, rule_id)
    logic.change_rule(session, rule, body)
    return rule_view(rule, family)


@router.delete("/alert-rules/{rule_id}", status_code=204, summary="Remove an alert rule with its alerts")
def delete_rule(rule_id: str, session: WriteSession) -> Response:
    queries.remove_rule(session, logic.get_rule(session, rule_id)[0])
    return Response(status_code=204)


@router.get("/alerts", summary="Alerts, newest first")
def list_alerts(
    session: ReadSession,
    paging: Paging,
    family: str | None = None,
    checkpoint: str | None = None,
    rule: str | None = None,
    state: AlertState | None = None,
    kind: AlertKind | None = None,
) -> Page[AlertView]:
    return listing.alerts(session, paging, family=family, checkpoint=checkpoint, rule=rule, state=state, kind=kind)


@router.get("/alerts/{alert_id}", summary="One alert")
def get_alert(alert_id: str, session: ReadSession) -> AlertView:
    return view(*logic.get(session, alert_id))


@router.post("/alerts/{alert_id}/ack", summary="Say that somebody has seen it")
def acknowledge(alert_id: str, session: WriteSession) -> AlertView:
    alert, *names = logic.get(session, alert_id)
    logic.acknowledge(session, alert)
    return view(alert, *names)


@router.post("/alerts/{alert_id}/mute", summary="Keep quiet about it for a time")
def mute(alert_id: str, session: WriteSession, body: Annotated[MuteBody | None, Body()] = None) -> AlertView:
    """New alerts of the same rule in the same family are muted with it: they are kept, and no webhook tells of them."""
    alert, *names = logic.get(session, alert_id)
    logic.mute(session, alert, body or MuteBody())
    return view(alert, *names)


@router.post("/alerts/{alert_id}/reopen", summary="Take back that somebody has seen it, or a mute")
def reopen(alert_id: str, session: WriteSession) -> AlertView:
    """It is open again. What was muted with it stays muted, each by itself."""
    alert, *names = logic.get(session, alert_id)
    logic.reopen(session, alert)
    return view(alert, *names)


@router.post("/alerts/{alert_id}/resolve", summary="Say that it is over")
def resolve(alert_id: str, session: WriteSession) -> AlertView:
    """It is raised again where it comes anew: at another checkpoint, by a further failed run, after a new silence."""
    alert, *names = logic.get(session, alert_id)
    logic.resolve(session, alert)
    return view(alert, *names)
