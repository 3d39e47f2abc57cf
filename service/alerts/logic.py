"""Alert rules against the verdicts of a checkpoint, and what people do with rules and alerts.

A rule on features fires on a transition: a feature that comes into a status at this checkpoint, not one that is still
in it. Its alert is of one (rule, checkpoint), and is resolved when its checkpoint is judged anew and the rule no longer
holds, or when all features that raised it have come back in a later checkpoint of the same lineage.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy.orm import Session

from featurewatch.service.alerts import quality, queries, raising
from featurewatch.service.alerts.schemas import (
    CONDITION,
    EVIDENCE_ROWS,
    AlertRuleCreate,
    AlertRuleUpdate,
    AlertState,
    Condition,
    FeatureCondition,
    FeatureRule,
    MuteBody,
    StatusCountCondition,
    TagCondition,
    WatchedCondition,
)
from featurewatch.service.families import logic as families
from featurewatch.service.features import queries as features
from featurewatch.service.kit import clock
from featurewatch.service.kit.ids import feature_id, parse_feature_id
from featurewatch.service.kit.problems import ConflictError, NotFoundError
from featurewatch.service.models import Alert, AlertRule, Checkpoint, Family, Feature, Verdict
from featurewatch.service.verdicts import queries as verdicts
from featurewatch.service.verdicts.statuses import Status

_NAMED_IN_SUMMARY = 3

Change = tuple[Verdict, Feature]


def create_rule(session: Session, body: AlertRuleCreate) -> tuple[AlertRule, str | None]:
    """A new rule and the name of its family. Raises 404 for a family, and for a feature that it does not have."""
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
    """A rule with the name of its family; NotFoundError."""
    found = queries.rule(session, rule_id)
    if found is None:
        raise NotFoundError(f"There is no alert rule {rule_id}.", code="unknown-alert-rule")
    return found


def change_rule(session: Session, rule: AlertRule, body: AlertRuleUpdate) -> None:
    """Change what the body names. It holds from now on. Alerts of another kind of condition are resolved.

    Raises 404 for a feature that its family does not have.
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
    """An alert with the names of rule, family and checkpoint; NotFoundError."""
    found = queries.alert(session, alert_id)
    if found is None:
        raise NotFoundError(f"There is no alert {alert_id}.", code="unknown-alert")
    return found


def acknowledge(session: Session, alert: Alert) -> None:
    """Somebody has seen it. ConflictError where it is resolved."""
    _require_unresolved(alert)
    alert.state, alert.muted_until = AlertState.ACKNOWLEDGED, None
    session.flush()


def mute(session: Session, alert: Alert, body: MuteBody) -> None:
    """Keep quiet about it, and about new alerts of its rule in its family, for a time. ConflictError if resolved."""
    _require_unresolved(alert)
    now = clock.database_now(session)
    until = now + timedelta(hours=body.hours) if body.hours is not None else body.until
    if until is not None and until <= now:
        raise ConflictError("The mute would be over already.", code="mute-in-the-past")
    alert.state, alert.muted_until = AlertState.MUTED, until
    session.flush()


def reopen(session: Session, alert: Alert) -> None:
    """Take back that somebody has seen it, or a mute. ConflictError where it is resolved."""
    _require_unresolved(alert)
    alert.state, alert.muted_until = AlertState.OPEN, None
    session.flush()


def resolve(session: Session, alert: Alert) -> None:
    """Somebody says that it is over. It is raised again where it comes anew. ConflictError where it is resolved."""
    _require_unresolved(alert)
    raising.resolve(session, alert)


def evaluate(session: Session, *, family: Family, checkpoint: Checkpoint) -> list[Alert]:
    """Hold the rules against a checkpoint's verdicts and its FVU, in the transaction that wrote them.

    The alerts now raised. Doing it twice changes nothing. Alerts of the checkpoint that it no longer supports are
    resolved, and those of its ancestors whose features have come back.
    """
    session.flush()
    raised = []
    for rule in queries.rules_for(session, family.id):
        condition = CONDITION.validate_python(rule.condition)
        if not isinstance(condition, FeatureRule):
            continue  # other modules hold these against what they hear of
        changes = _matching(session, condition, family, checkpoint)
        summary = _summary(condition, checkpoint, changes) if changes else ""
        evidence = [_evidence(*each) for each in changes[:EVIDENCE_ROWS]]
        raised.append(raising.settle(session, rule, family, checkpoint, summary, evidence))
    _resolve_ancestors(session, checkpoint)
    raised += quality.evaluate(session, family=family, checkpoint=checkpoint)
    return [alert for alert in raised if alert is not None]


def rehearse(
    session: Session, *, family_id: str, came: Mapping[int, tuple[str | None, str]]
) -> list[tuple[AlertRule, int]]:
    """The family's rules that would fire if features came from one status into another, and on how many of them.

    came: feature number -> (status before, status now). Writes nothing.
    """
    known = features.by_numbers(session, family_id, sorted(came))
    changes = [
        (Verdict(feature=number, status=now), known.get(number) or Feature(number=number, tags=[], watched=False))
        for number, (before, now) in came.items()
        if before != now and (before is not None or now != Status.PRESENT)
    ]
    met = []
    for rule in queries.rules_for(session, family_id):
        condition = CONDITION.validate_python(rule.condition)
        if not isinstance(condition, FeatureRule):
            continue
        of_these = [change for change in changes if change[0].status in condition.statuses]
        if matching := _meeting(condition, of_these):
            met.append((rule, len(matching)))
    return met


def _matching(session: Session, condition: FeatureRule, family: Family, checkpoint: Checkpoint) -> list[Change]:
    """Transitions that meet the condition, largest first; empty where it does not hold."""
    if checkpoint.parent_id is None:
        return []  # nothing to have changed from
    return _meeting(condition, queries.transitions(session, family.id, checkpoint.id, condition.statuses))


def _meeting(condition: FeatureRule, changes: Sequence[Change]) -> list[Change]:
    """Of transitions into the condition's statuses those that meet it; empty where it does not hold."""
    match condition:
        case FeatureCondition():
            number = parse_feature_id(condition.feature)
            return [change for change in changes if change[0].feature == number]
        case WatchedCondition():
            return [change for change in changes if change[1].watched]
        case TagCondition():
            return [change for change in changes if condition.tag in change[1].tags]
        case StatusCountCondition():
            return list(changes) if len(changes) >= condition.at_least else []


def _resolve_ancestors(session: Session, checkpoint: Checkpoint) -> None:
    ancestors = verdicts.ancestors(session, checkpoint)
    for alert, rule in queries.unresolved(session, ancestors):
        condition = CONDITION.validate_python(rule.condition)
        if not isinstance(condition, FeatureRule):
            continue
        bad = set(condition.statuses)
        numbers = [parse_feature_id(row["feature"]) for row in alert.evidence]
        statuses = verdicts.statuses(session, checkpoint.id, numbers)
        # Not to be able to say is not to have come back, and neither is to have no verdict.
        back = all(statuses.get(number, Status.INDETERMINATE) not in bad | {Status.INDETERMINATE} for number in numbers)
        if back:
            raising.resolve(session, alert, seen_at=checkpoint)


def _summary(condition: FeatureRule, checkpoint: Checkpoint, changes: list[Change]) -> str:
    """One sentence for people: what happened to which features."""
    named = [
        f"{feature_id(verdict.feature)}{f' ({feature.label})' if feature.label else ''} {verdict.status}"
        for verdict, feature in changes[:_NAMED_IN_SUMMARY]
    ]
    rest = len(changes) - len(named)
    what = ", ".join(named) + (f" and {rest} more" if rest else "")
    match condition:
        case TagCondition():
            return f"{checkpoint.name}: tag {condition.tag}: {what}"
        case StatusCountCondition():
            return f"{checkpoint.name}: {len(changes)} features {condition.status} (limit {condition.at_least}): {what}"
        case _:
            return f"{checkpoint.name}: {what}"


def _evidence(verdict: Verdict, feature: Feature) -> dict[str, Any]:
    return {
        "feature": feature_id(verdict.feature),
        "label": feature.label,
        "auto_label": feature.auto_label,
        "top_tokens": feature.top_tokens,
        "status": verdict.status,
        "previous_status": verdict.previous_status,
        "change": verdict.change,
        "projection_ratio": verdict.projection_ratio,
        "projection_ratio_ci": None
        if verdict.projection_ratio_lo is None or verdict.projection_ratio_hi is None
        else [verdict.projection_ratio_lo, verdict.projection_ratio_hi],
        "q_value": verdict.q_value,
        "successors": verdict.successors,
    }


def _require_feature(session: Session, family_id: str, condition: Condition) -> None:
    named = getattr(condition, "feature", None)
    if named and not features.by_numbers(session, family_id, [parse_feature_id(named)]):
        raise NotFoundError(f"The family has no feature {named} that the rule could watch.", code="unknown-feature")


def _require_unresolved(alert: Alert) -> None:
    if alert.state == AlertState.RESOLVED:
        raise ConflictError(f"Alert {alert.id} is resolved already.", code="alert-resolved")
