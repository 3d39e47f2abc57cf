"""`/v1/alert-rules` and `/v1/alerts`."""

from typing import Annotated

from fastapi import APIRouter, Body, Response

from featurewatch.service.alerts import logic, schemas
from featurewatch.service.alerts.conditions import AlertKind
from featurewatch.service.auth.guard import BY_METHOD
from featurewatch.service.kit.pages import Page, Paging
from featurewatch.service.kit.sessions import ReadSession, WriteSession

router = APIRouter(prefix="/v1", tags=["alerts"], dependencies=[BY_METHOD])


@router.post(
    "/alert-rules",
    status_code=201,
    summary="Create an alert rule",
    responses={404: {"description": "No such family"}},
)
def create_rule(body: schemas.AlertRuleCreate, session: WriteSession, response: Response) -> schemas.AlertRuleView:
    """The rule applies to checkpoints that are judged from now on."""
    rule, family = logic.create_rule(session, body)
    response.headers["Location"] = f"/v1/alert-rules/{rule.id}"
    return schemas.rule_view(rule, family)


@router.get("/alert-rules", summary="List alert rules")
def list_rules(session: ReadSession, paging: Paging, family: str | None = None) -> Page[schemas.AlertRuleView]:
    return logic.rules(session, paging, family=family)


@router.get("/alert-rules/{rule_id}", summary="Get an alert rule")
def get_rule(rule_id: str, session: ReadSession) -> schemas.AlertRuleView:
    return schemas.rule_view(*logic.get_rule(session, rule_id))


@router.patch("/alert-rules/{rule_id}", summary="Update an alert rule")
def change_rule(rule_id: str, body: schemas.AlertRuleUpdate, session: WriteSession) -> schemas.AlertRuleView:
    rule, family = logic.get_rule(session, rule_id)
    logic.change_rule(session, rule, body)
    return schemas.rule_view(rule, family)


@router.delete("/alert-rules/{rule_id}", status_code=204, summary="Delete an alert rule and its alerts")
def delete_rule(rule_id: str, session: WriteSession) -> Response:
    session.delete(logic.get_rule(session, rule_id)[0])
    return Response(status_code=204)


@router.get("/alerts", summary="List alerts")
def list_alerts(
    session: ReadSession,
    paging: Paging,
    family: str | None = None,
    checkpoint: str | None = None,
    rule: str | None = None,
    state: schemas.AlertState | None = None,
    kind: AlertKind | None = None,
) -> Page[schemas.AlertView]:
    return logic.alerts(session, paging, family=family, checkpoint=checkpoint, rule=rule, state=state, kind=kind)


@router.get("/alerts/{alert_id}", summary="Get an alert")
def get_alert(alert_id: str, session: ReadSession) -> schemas.AlertView:
    return schemas.view(*logic.get(session, alert_id))


@router.post("/alerts/{alert_id}/ack", summary="Acknowledge an alert")
def acknowledge(alert_id: str, session: WriteSession) -> schemas.AlertView:
    alert, *names = logic.get(session, alert_id)
    logic.acknowledge(session, alert)
    return schemas.view(alert, *names)


@router.post("/alerts/{alert_id}/mute", summary="Mute an alert")
def mute(
    alert_id: str, session: WriteSession, body: Annotated[schemas.MuteBody | None, Body()] = None
) -> schemas.AlertView:
    """Also mutes new alerts of the same rule in the same family. Webhooks do not receive muted alerts."""
    alert, *names = logic.get(session, alert_id)
    logic.mute(session, alert, body or schemas.MuteBody())
    return schemas.view(alert, *names)


@router.post("/alerts/{alert_id}/reopen", summary="Reopen an acknowledged or muted alert")
def reopen(alert_id: str, session: WriteSession) -> schemas.AlertView:
    """Alerts that were muted with it stay muted."""
    alert, *names = logic.get(session, alert_id)
    logic.reopen(session, alert)
    return schemas.view(alert, *names)


@router.post("/alerts/{alert_id}/resolve", summary="Resolve an alert")
def resolve(alert_id: str, session: WriteSession) -> schemas.AlertView:
    """It is raised again when it recurs: at another checkpoint, with another failed run, after a new absence."""
    alert, *names = logic.get(session, alert_id)
    logic.resolve(session, alert)
    return schemas.view(alert, *names)
