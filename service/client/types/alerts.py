"""Shapes of the REST API about alerts, as the client returns and takes them: dictionaries with known keys.

Written by `make docs` from the OpenAPI document.
"""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from featurewatch.service.client.types.checkpoints import Places, Status


class AbsenceCondition(TypedDict):
    """No checkpoint of a family is judged for a number of days."""

    kind: Literal["absence"]
    days: float


class FeatureCondition(TypedDict):
    """A given feature enters one of the statuses."""

    kind: Literal["feature"]
    feature: str
    statuses: NotRequired[list[Status]]


class PlacesCondition(TypedDict):
    """A given feature, a feature with a given tag or a watched feature becomes active in other places."""

    kind: Literal["places"]
    feature: NotRequired[str | None]
    tag: NotRequired[str | None]
    places: NotRequired[list[Places]]


class QualityCondition(TypedDict):
    """The FVU of a checkpoint exceeds a limit, or a multiple of its parent's."""

    kind: Literal["quality"]
    max_fvu: NotRequired[float | None]
    max_fvu_ratio: NotRequired[float | None]


class RewiredCondition(TypedDict):
    """A feature depends on different features than at the parent checkpoint."""

    kind: Literal["rewired"]
    feature: NotRequired[str | None]


class RunFailedCondition(TypedDict):
    """Runs of one kind fail in a family, with no success in between."""

    kind: Literal["run_failed"]
    runs: NotRequired[list[str]]
    at_least: NotRequired[int]


class SignatureCondition(TypedDict):
    """A signature enters one of the statuses."""

    kind: Literal["signature"]
    signature: NotRequired[str | None]
    statuses: NotRequired[list[Literal["present", "suppressed", "amplified", "replaced", "absent", "indeterminate"]]]


class StatusCountCondition(TypedDict):
    """A number of features enter a status at the same checkpoint."""

    kind: Literal["status_count"]
    status: Status
    at_least: int


class TagCondition(TypedDict):
    """A feature with a given tag enters one of the statuses."""

    kind: Literal["tag"]
    tag: str
    statuses: NotRequired[list[Status]]


class WatchedCondition(TypedDict):
    """A watched feature enters one of the statuses."""

    kind: Literal["watched"]
    statuses: NotRequired[list[Status]]


AlertState = Literal["open", "acknowledged", "muted", "resolved"]

Condition = (
    FeatureCondition
    | WatchedCondition
    | TagCondition
    | StatusCountCondition
    | PlacesCondition
    | SignatureCondition
    | RewiredCondition
    | QualityCondition
    | RunFailedCondition
    | AbsenceCondition
)


class Alert(TypedDict):
    """`AlertView` of the OpenAPI document."""

    id: str
    kind: Literal[
        "feature",
        "watched",
        "tag",
        "status_count",
        "places",
        "signature",
        "rewired",
        "quality",
        "run_failed",
        "absence",
        "webhook_paused",
    ]
    rule: str | None
    rule_name: str | None
    family: str | None
    checkpoint: str | None
    webhook: str | None
    state: AlertState
    summary: str
    evidence: list[dict[str, Any]]
    created_at: str
    updated_at: str
    muted_until: str | None


class AlertRule(TypedDict):
    """`AlertRuleView` of the OpenAPI document."""

    id: str
    name: str
    family: str | None
    condition: Condition
    enabled: bool
    created_at: str
