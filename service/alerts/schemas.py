"""Shapes of alert rules and alerts in the API, and the conditions of rules."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self, cast, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, field_validator, model_validator

from featurewatch.service.kit.ids import feature_id, parse_feature_id
from featurewatch.service.models import Alert, AlertRule
from featurewatch.service.signatures.rule import Status as SignatureStatus
from featurewatch.service.verdicts.statuses import ALARMING, Status

AlertKind = Literal[
    "feature", "watched", "tag", "status_count", "signature", "rewired", "quality", "run_failed", "absence",
    "webhook_paused",
]  # fmt: skip
EVIDENCE_ROWS = 100
Statuses = Annotated[
    list[Status], Field(min_length=1, max_length=len(Status), description="Statuses that raise the alert.")
]


class AlertState(StrEnum):
    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    MUTED = "muted"
    RESOLVED = "resolved"


class _Condition(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FeatureCondition(_Condition):
    """One feature comes into one of the statuses."""

    kind: Literal["feature"]
    feature: str = Field(examples=["F42318"])
    statuses: Statuses = [*ALARMING]

    @field_validator("feature")
    @classmethod
    def _normalise(cls, value: str) -> str:
        return feature_id(parse_feature_id(value))


class WatchedCondition(_Condition):
    """Any watched feature comes into one of the statuses."""

    kind: Literal["watched"]
    statuses: Statuses = [*ALARMING]


class TagCondition(_Condition):
    """Any feature with the tag comes into one of the statuses."""

    kind: Literal["tag"]
    tag: str = Field(min_length=1, max_length=100, examples=["deception"])
    statuses: Statuses = [*ALARMING]


class StatusCountCondition(_Condition):
    """So many features come into the status at once."""

    kind: Literal["status_count"]
    status: Status
    at_least: int = Field(ge=1)

    @property
    def statuses(self) -> list[Status]:
        """The one status, as the other conditions have them."""
        return [self.status]


class SignatureCondition(_Condition):
    """A signature comes into one of the statuses."""

    kind: Literal["signature"]
    signature: str | None = Field(
        None, min_length=1, max_length=100, description="Its name; null: any of the family's."
    )
    statuses: Annotated[list[SignatureStatus], Field(min_length=1, max_length=6)] = [
        word for word in get_args(SignatureStatus) if word in ALARMING
    ]


class RewiredCondition(_Condition):
    """A feature is computed from other features than at the parent, as far as that was looked at."""

    kind: Literal["rewired"]
    feature: str | None = Field(None, examples=["F42318"], description="Null: any that was looked at.")

    @field_validator("feature")
    @classmethod
    def _normalise(cls, value: str | None) -> str | None:
        return None if value is None else feature_id(parse_feature_id(value))


class QualityCondition(_Condition):
    """The dictionary describes a checkpoint worse than this: what it says of the features there is worth less."""

    kind: Literal["quality"]
    max_fvu: float | None = Field(None, gt=0, allow_inf_nan=False, description="Most FVU of a checkpoint.")
    max_fvu_ratio: float | None = Field(
        None, gt=1, allow_inf_nan=False, description="Most FVU of a checkpoint over that of its parent."
    )

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.max_fvu is None and self.max_fvu_ratio is None:
            raise ValueError("a quality rule needs max_fvu or max_fvu_ratio")
        return self


class RunFailedCondition(_Condition):
    """So many runs of one kind in a family failed, and none has succeeded since."""

    kind: Literal["run_failed"]
    runs: list[Annotated[str, Field(pattern="^[a-z_]{1,100}$")]] = Field(
        default=[], max_length=20, examples=[["onboard"]], description="Kinds of runs; empty: all, each by itself."
    )
    at_least: int = Field(1, ge=1)


class AbsenceCondition(_Condition):
    """No checkpoint of a family was judged for so many days."""

    kind: Literal["absence"]
    days: float = Field(gt=0, le=3650)


FeatureRule = FeatureCondition | WatchedCondition | TagCondition | StatusCountCondition
Condition = Annotated[
    FeatureRule | SignatureCondition | RewiredCondition | QualityCondition | RunFailedCondition | AbsenceCondition,
    Field(discriminator="kind"),
]
CONDITION: TypeAdapter[Condition] = TypeAdapter(Condition)


class AlertRuleCreate(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    family: str | None = Field(None, description="Null: every family.")
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
    """For how long; neither: until the alert is resolved."""

    model_config = ConfigDict(extra="forbid")

    until: AwareDatetime | None = None
    hours: float | None = Field(None, gt=0, le=24 * 365)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.until is not None and self.hours is not None:
            raise ValueError("give `until` or `hours`, not both")
        return self


class AlertView(BaseModel):
    id: str
    kind: AlertKind = Field(description="That of its rule's condition; `webhook_paused` has no rule.")
    rule: str | None
    rule_name: str | None
    family: str | None
    checkpoint: str | None
    webhook: str | None
    state: AlertState
    summary: str
    evidence: list[dict[str, Any]] = Field(description="What raised it, e.g. verdicts, largest change first.")
    created_at: datetime
    updated_at: datetime
    muted_until: datetime | None


def rule_view(rule: AlertRule, family: str | None) -> AlertRuleView:
    """A rule as the API shows it."""
    return AlertRuleView(
        id=rule.id,
        name=rule.name,
        family=family,
        condition=CONDITION.validate_python(rule.condition),
        enabled=rule.enabled,
        created_at=rule.created_at,
    )


def view(alert: Alert, rule_name: str | None, family: str | None, checkpoint: str | None) -> AlertView:
    """An alert as the API and the webhooks show it."""
    return AlertView(
        id=alert.id,
        kind=cast(AlertKind, alert.kind),
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
