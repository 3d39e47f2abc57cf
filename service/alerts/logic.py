"""What people do with alert rules and alerts."""

from datetime import timedelta

from sqlalchemy.orm import Session

from featurewatch.service.alerts import queries, raising
from featurewatch.service.alerts.conditions import BaseCondition
from featurewatch.service.alerts.schemas import AlertRuleCreate, AlertRuleUpdate, AlertState, MuteBody
from featurewatch.service.families import logic as families
from featurewatch.service.features import queries as features
from featurewatch.service.kit import clock
from featurewatch.service.kit.ids import parse_feature_id
from featurewatch.service.kit.problems import ConflictError, NotFoundError
from featurewatch.service.models import Alert, AlertRule


def create_rule(session: Session, body: AlertRuleCreate) -> tuple[AlertRule, str | None]:
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
    queries.add(session, rule)
    return rule, body.family


def get_rule(session: Session, rule_id: str) -> tuple[AlertRule, str | None]:
    """A rule with the name of its family. NotFoundError."""
    row = queries.rule(session, rule_id)
    if row is None:
        raise NotFoundError(f"There is no alert rule {rule_id}.", code="unknown-alert-rule")
    return row


def change_rule(session: Session, rule: AlertRule, body: AlertRuleUpdate) -> None:
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


def get(session: Session, alert_id: str) -> queries.Named:
    """An alert with the names of its rule, family and checkpoint. NotFoundError."""
    row = queries.alert(session, alert_id)
    if row is None:
        raise NotFoundError(f"There is no alert {alert_id}.", code="unknown-alert")
    return row


def acknowledge(session: Session, alert: Alert) -> None:
    """Acknowledge an alert. ConflictError if it is resolved."""
    _require_unresolved(alert)
    alert.state, alert.muted_until = AlertState.ACKNOWLEDGED, None
    session.flush()


def mute(session: Session, alert: Alert, body: MuteBody) -> None:
    """Mute an alert, and new alerts of its rule in its family. ConflictError if it is resolved."""
    _require_unresolved(alert)
    now = clock.database_now(session)
    until = now + timedelta(hours=body.hours) if body.hours is not None else body.until
    if until is not None and until <= now:
        raise ConflictError("The mute would end in the past. Give a later time.", code="mute-in-the-past")
    alert.state, alert.muted_until = AlertState.MUTED, until
    session.flush()


def reopen(session: Session, alert: Alert) -> None:
    """Undo an acknowledgement or a mute. ConflictError if it is resolved."""
    _require_unresolved(alert)
    alert.state, alert.muted_until = AlertState.OPEN, None
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
    if alert.state == AlertState.RESOLVED:
        raise ConflictError(f"Alert {alert.id} is already resolved.", code="alert-resolved")
