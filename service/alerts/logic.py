"""Lists alert rules and alerts, and does what people ask for: create, change, acknowledge, mute, resolve."""

from datetime import timedelta

from sqlalchemy.orm import Session

from featurewatch.service.alerts import queries, raising, schemas
from featurewatch.service.alerts.conditions import AlertKind, BaseCondition
from featurewatch.service.families import logic as families
from featurewatch.service.features import queries as features
from featurewatch.service.kit import clock
from featurewatch.service.kit.ids import parse_feature_id
from featurewatch.service.kit.pages import Page, Pager, newest_first
from featurewatch.service.kit.problems import ConflictError, NotFoundError
from featurewatch.service.models import Alert, AlertRule, Checkpoint, Family


def create_rule(session: Session, body: schemas.AlertRuleCreate) -> tuple[AlertRule, str | None]:
    """Create a rule. Returns it with the name of its family.

    NotFoundError for an unknown family, and for a feature that the family does not have.
    """
    family = families.get(session, body.family) if body.family is not None else None
    if family is not None:
        _require_feature(session, family.id, body.condition)
    rule = AlertRule(
        name=body.name,
        family_id=family.id if family else None,
        condition=body.condition.model_dump(mode="json"),
        enabled=body.enabled,
    )
    session.add(rule)
    session.flush()
    return rule, body.family


def rules(session: Session, paging: Pager, *, family: str | None = None) -> Page[schemas.AlertRuleView]:
    """A page of alert rules, newest first."""
    return paging.fetch(session, queries.rules(family), newest_first(AlertRule), f"rules {family}", schemas.rule_view)


def get_rule(session: Session, rule_id: str) -> tuple[AlertRule, str | None]:
    """A rule with the name of its family. NotFoundError."""
    row = queries.rule(session, rule_id)
    if row is None:
        raise NotFoundError(f"There is no alert rule {rule_id}.", code="unknown-alert-rule")
    return row


def change_rule(session: Session, rule: AlertRule, body: schemas.AlertRuleUpdate) -> None:
    """Change what the body names. If the kind of the rule changes, its alerts are resolved.

    NotFoundError for a feature that the family does not have.
    """
    if body.name is not None:
        rule.name = body.name
    if body.condition is not None:
        if body.condition.kind != rule.condition["kind"]:
            for alert in queries.unresolved_of_rule(session, rule.id):
                raising.resolve(session, alert)
        if rule.family_id is not None:
            _require_feature(session, rule.family_id, body.condition)
        rule.condition = body.condition.model_dump(mode="json")
    if body.enabled is not None:
        rule.enabled = body.enabled
    session.flush()


def alerts(
    session: Session,
    paging: Pager,
    *,
    family: str | None = None,
    checkpoint: str | None = None,
    rule: str | None = None,
    state: schemas.AlertState | None = None,
    kind: AlertKind | None = None,
) -> Page[schemas.AlertView]:
    """A page of the alerts that match every given filter, newest first."""
    wanted = {
        Family.name: family,
        Checkpoint.name: checkpoint,
        Alert.rule_id: rule,
        Alert.state: state,
        Alert.kind: kind,
    }
    order = f"alerts {family} {checkpoint} {rule} {state} {kind}"
    return paging.fetch(session, queries.alerts(wanted), newest_first(Alert), order, schemas.view)


def get(session: Session, alert_id: str) -> queries.Named:
    """An alert with the names of its rule, family and checkpoint. NotFoundError."""
    row = queries.alert(session, alert_id)
    if row is None:
        raise NotFoundError(f"There is no alert {alert_id}.", code="unknown-alert")
    return row


def acknowledge(session: Session, alert: Alert) -> None:
    """Acknowledge an alert. ConflictError if it is resolved."""
    _require_unresolved(alert)
    alert.state, alert.muted_until = schemas.AlertState.ACKNOWLEDGED, None
    session.flush()


def mute(session: Session, alert: Alert, body: schemas.MuteBody) -> None:
    """Mute an alert, and new alerts of its rule in its family. ConflictError if it is resolved."""
    _require_unresolved(alert)
    now = clock.database_now(session)
    until = now + timedelta(hours=body.hours) if body.hours is not None else body.until
    if until is not None and until <= now:
        raise ConflictError("The mute would end in the past. Give a later time.", code="mute-in-the-past")
    alert.state, alert.muted_until = schemas.AlertState.MUTED, until
    session.flush()


def reopen(session: Session, alert: Alert) -> None:
    """Undo an acknowledgement or a mute. ConflictError if it is resolved."""
    _require_unresolved(alert)
    alert.state, alert.muted_until = schemas.AlertState.OPEN, None
    session.flush()


def resolve(session: Session, alert: Alert) -> None:
    """Resolve an alert by hand. It is raised again when it recurs. ConflictError if it is resolved."""
    _require_unresolved(alert)
    raising.resolve(session, alert)


def _require_feature(session: Session, family_id: str, condition: BaseCondition) -> None:
    name = getattr(condition, "feature", None)
    if name and not features.by_numbers(session, family_id, [parse_feature_id(name)]):
        raise NotFoundError(f"The family has no feature {name}.", code="unknown-feature")


def _require_unresolved(alert: Alert) -> None:
    if alert.state == schemas.AlertState.RESOLVED:
        raise ConflictError(f"Alert {alert.id} is already resolved.", code="alert-resolved")
