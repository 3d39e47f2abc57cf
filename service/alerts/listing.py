"""Lists of alerts and alert rules, for the API and the web pages."""

from sqlalchemy.orm import Session

from featurewatch.service.alerts import queries
from featurewatch.service.alerts.conditions import AlertKind
from featurewatch.service.alerts.schemas import AlertRuleView, AlertState, AlertView, rule_view, view
from featurewatch.service.kit.pages import Page, Pager


def rules(session: Session, paging: Pager, *, family: str | None = None) -> Page[AlertRuleView]:
    """Alert rules, newest first."""
    order = f"rules {family}"
    rows = queries.rules_page(session, family=family, after=paging.after(order), limit=paging.limit)
    rows, cursor = paging.page(rows, order, lambda row: (row[0].created_at, row[0].id))
    return Page(data=[rule_view(*row) for row in rows], next_cursor=cursor)


def alerts(
    session: Session,
    paging: Pager,
    *,
    family: str | None = None,
    checkpoint: str | None = None,
    rule: str | None = None,
    state: AlertState | None = None,
    kind: AlertKind | None = None,
) -> Page[AlertView]:
    """Alerts that match every given filter, newest first."""
    order = f"alerts {family} {checkpoint} {rule} {state} {kind}"
    rows = queries.alerts_page(
        session,
        family=family,
        checkpoint=checkpoint,
        rule_id=rule,
        state=state,
        kind=kind,
        after=paging.after(order),
        limit=paging.limit,
    )
    rows, cursor = paging.page(rows, order, lambda row: (row[0].created_at, row[0].id))
    return Page(data=[view(*row) for row in rows], next_cursor=cursor)
