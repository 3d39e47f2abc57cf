"""Shapes of alert rules and alerts in the API."""

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from featurewatch.service.alerts.conditions import CONDITION, AlertKind, Condition

if TYPE_CHECKING:
    # The command reads these shapes and starts without the database's tables.
    from featurewatch.service.models import Alert, AlertRule


class AlertState(StrEnum):
    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    MUTED = "muted"
    RESOLVED = "resolved"


class AlertRuleCreate(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    family: str | None = Field(None, description="Name of the family. Null: every family.")
    condition: Condition
    enabled: bool = True


class AlertRuleUpdate(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(None, min_length=1, max_length=200)
    condition: Condition | None = None
    enabled: bool | None = None


class AlertRuleView(BaseModel):
    id: str
    name: str
    family: str | None
    condition: Condition
    enabled: bool
    created_at: datetime


class MuteBody(BaseModel):
    """How long an alert is muted. With neither field, until it is resolved."""

    model_config = ConfigDict(extra="forbid")

    until: AwareDatetime | None = None
    hours: float | None = Field(None, gt=0, le=24 * 365)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.until is not None and self.hours is not None:
            raise ValueError("give either `until` or `hours`, not both")
        return self


class AlertView(BaseModel):
    id: str
    kind: AlertKind = Field(description="Kind of its rule. Alerts of the kind `webhook_paused` have none.")
    rule: str | None
    rule_name: str | None
    family: str | None
    checkpoint: str | None
    webhook: str | None
    state: AlertState
    summary: str
    evidence: list[dict[str, Any]] = Field(description="What raised it, such as verdicts, the largest change first.")
    created_at: datetime
    updated_at: datetime
    muted_until: datetime | None


def rule_view(rule: "AlertRule", family: str | None) -> AlertRuleView:
    """A rule as the API shows it."""
    return AlertRuleView(
        id=rule.id,
        name=rule.name,
        family=family,
        condition=CONDITION.validate_python(rule.condition),
        enabled=rule.enabled,
        created_at=rule.created_at,
    )


def view(alert: "Alert", rule_name: str | None, family: str | None, checkpoint: str | None) -> AlertView:
    """An alert as the API and the webhooks show it."""
    return AlertView(
        id=alert.id,
        kind=alert.kind,
        rule=alert.rule_id,
        rule_name=rule_name,
        family=family,
        checkpoint=checkpoint,
        webhook=alert.webhook_id,
        state=AlertState(alert.state),
        summary=alert.summary,
        evidence=alert.evidence,
        created_at=alert.created_at,
        updated_at=alert.updated_at,
        muted_until=alert.muted_until,
    )
