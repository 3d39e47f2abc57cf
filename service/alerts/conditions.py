"""The kinds of alert rules. For each: its parameters, what raises its alert, and what the alert says.

A new kind is a class here, named in `Condition`. The shapes of the API, `featurewatch alert rule create`, the form on
the alerts page and the table in docs/api.md derive from the classes.
"""

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from featurewatch.service.alerts import events
from featurewatch.service.alerts.evidence import MOST_ROWS, Evidence, failure_row, places_row, reading_row, verdict_row
from featurewatch.service.kit.ids import feature_id, parse_feature_id
from featurewatch.service.signatures.rule import Status as SignatureStatus
from featurewatch.service.verdicts.statuses import ALARMING, PLACES_ALARMING, Places, Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from featurewatch.service.alerts.events import Transition
    from featurewatch.service.models import Feature

SIGNATURE_ALARMING: list[SignatureStatus] = [word for word in get_args(SignatureStatus) if word in ALARMING]
_NAMED_IN_SUMMARY = 3

Statuses = Annotated[
    list[Status], Field(min_length=1, max_length=len(Status), description="Statuses that raise the alert.")
]
FeatureId = Annotated[str, AfterValidator(lambda text: feature_id(parse_feature_id(text)))]


class BaseCondition(BaseModel):
    """One kind of alert rule. The fields are its parameters; the docstring is one sentence that says when it fires."""

    model_config = ConfigDict(extra="forbid")

    kind: str

    listens_to: ClassVar[type[events.Event]]
    """The events that `match` takes"""
    resolved_when: ClassVar[str]
    """Completes "Resolved when ..." """

    @classmethod
    def when(cls) -> str:
        """Completes "Raised when ..." """
        sentence = (cls.__doc__ or "").rstrip(".")
        return sentence[:1].lower() + sentence[1:]

    def match(self, event: Any) -> Evidence | None:
        """The evidence in an event that raises an alert, or None."""
        raise NotImplementedError

    def summary(self, event: Any, evidence: Evidence) -> str:
        """What the alert says, in one sentence. The name of the checkpoint is put before it."""
        raise NotImplementedError

    def continues(self, evidence: Evidence, ancestor: Evidence) -> bool:
        """Whether evidence at a checkpoint only continues the unresolved alert of an ancestor: no alert is raised."""
        return False

    def keeps(self, event: Any, row: dict[str, Any]) -> bool:
        """Whether a row of the checkpoint's unresolved alert still counts because the event does not cover it."""
        return False

    def clears(self, event: Any, ancestor: Evidence) -> bool:
        """Whether an event at a checkpoint resolves the alert of an ancestor."""
        return False


class _FeatureStatusCondition(BaseCondition):
    """Base of the kinds that fire when features enter a status, not while they stay in it."""

    listens_to: ClassVar = events.FeaturesJudged
    resolved_when: ClassVar = "all of them leave the statuses at a later checkpoint"
    if TYPE_CHECKING:

        @property
        def statuses(self) -> list[Status]:
            """Statuses that raise the alert."""

    def select(self, transitions: "Sequence[Transition]") -> "Sequence[Transition]":
        """The transitions into `statuses` that raise the alert."""
        raise NotImplementedError

    def match(self, event: events.FeaturesJudged) -> Evidence | None:
        return [verdict_row(*transition) for transition in self.select(event.transitions(self.statuses))] or None

    def summary(self, event: events.FeaturesJudged, evidence: Evidence) -> str:
        return _named(evidence, "status")

    def clears(self, event: events.FeaturesJudged, ancestor: Evidence) -> bool:
        names = [row["feature"] for row in ancestor]
        return _recovered(names, event.statuses(names), self.statuses)


class FeatureCondition(_FeatureStatusCondition):
    """A given feature enters one of the statuses."""

    kind: Literal["feature"]
    feature: FeatureId = Field(title="Feature", examples=["F42318"], description="Id of the feature.")
    statuses: Statuses = [*ALARMING]

    def select(self, transitions: "Sequence[Transition]") -> "Sequence[Transition]":
        number = parse_feature_id(self.feature)
        return [transition for transition in transitions if transition[0].feature == number]


class WatchedCondition(_FeatureStatusCondition):
    """A watched feature enters one of the statuses."""

    kind: Literal["watched"]
    statuses: Statuses = [*ALARMING]

    def select(self, transitions: "Sequence[Transition]") -> "Sequence[Transition]":
        return [transition for transition in transitions if transition[1].watched]


class TagCondition(_FeatureStatusCondition):
    """A feature with a given tag enters one of the statuses."""

    kind: Literal["tag"]
    tag: str = Field(min_length=1, max_length=100, examples=["deception"], description="Tag of the features.")
    statuses: Statuses = [*ALARMING]

    def select(self, transitions: "Sequence[Transition]") -> "Sequence[Transition]":
        return [transition for transition in transitions if self.tag in transition[1].tags]

    def summary(self, event: events.FeaturesJudged, evidence: Evidence) -> str:
        return f"tag {self.tag}: {super().summary(event, evidence)}"


class StatusCountCondition(_FeatureStatusCondition):
    """A number of features enter a status at the same checkpoint."""

    kind: Literal["status_count"]
    status: Status = Field(examples=["absent"], description="Status that raises the alert.")
    at_least: int = Field(ge=1, examples=[20], description="Number of features that raises the alert.")

    @property
    def statuses(self) -> list[Status]:
        return [self.status]

    def select(self, transitions: "Sequence[Transition]") -> "Sequence[Transition]":
        return transitions if len(transitions) >= self.at_least else []

    def summary(self, event: events.FeaturesJudged, evidence: Evidence) -> str:
        count = f"{len(evidence)} features {self.status} (limit {self.at_least})"
        return f"{count}: {super().summary(event, evidence)}"


class PlacesCondition(BaseCondition):
    """A given feature, a feature with a given tag or a watched feature becomes active in other places."""

    listens_to: ClassVar = events.FeaturesJudged
    resolved_when: ClassVar = "all of them are active in the same places as at the parent at a later checkpoint"

    kind: Literal["places"]
    feature: FeatureId | None = Field(
        None, title="Feature", examples=["F42318"], description="Id of the feature. Default: every watched feature."
    )
    tag: str | None = Field(
        None, min_length=1, max_length=100, examples=["deception"],
        description="Tag of the features. Default: every watched feature.",
    )  # fmt: skip
    places: Annotated[
        list[Places], Field(min_length=1, max_length=len(Places), description="Places that raise the alert.")
    ] = [*PLACES_ALARMING]

    @model_validator(mode="after")
    def _one_group(self) -> Self:
        if self.feature is not None and self.tag is not None:
            raise ValueError("a places rule takes a feature or a tag, not both; create a rule for each")
        return self

    def match(self, event: events.FeaturesJudged) -> Evidence | None:
        return [places_row(*move) for move in event.moves(self.places) if self._covers(move[1])] or None

    def summary(self, event: events.FeaturesJudged, evidence: Evidence) -> str:
        return (f"tag {self.tag}: " if self.tag else "") + _named(evidence, "places")

    def clears(self, event: events.FeaturesJudged, ancestor: Evidence) -> bool:
        names = [row["feature"] for row in ancestor]
        places = event.places(names)
        return all(places.get(name) == Places.SAME for name in names)

    def _covers(self, feature: "Feature") -> bool:
        if self.tag is not None:
            return self.tag in feature.tags
        return feature.watched if self.feature is None else feature.number == parse_feature_id(self.feature)


class SignatureCondition(BaseCondition):
    """A signature enters one of the statuses."""

    listens_to: ClassVar = events.SignaturesRead
    resolved_when: ClassVar = "it leaves the statuses at a later checkpoint"

    kind: Literal["signature"]
    signature: str | None = Field(
        None, min_length=1, max_length=100, description="Name of the signature. Default: any signature of the family."
    )
    statuses: Annotated[
        list[SignatureStatus], Field(min_length=1, max_length=6, description="Statuses that raise the alert.")
    ] = SIGNATURE_ALARMING

    def match(self, event: events.SignaturesRead) -> Evidence | None:
        return [
            reading_row(reading, signature)
            for reading, signature in event.readings
            if self.signature in (None, signature.name)
            and reading.status in self.statuses
            and reading.previous_status not in (None, reading.status)
        ] or None

    def summary(self, event: events.SignaturesRead, evidence: Evidence) -> str:
        return ", ".join(f"signature {row['signature']} {row['status']}" for row in evidence)

    def keeps(self, event: events.SignaturesRead, row: dict[str, Any]) -> bool:
        return row["signature"] not in event.statuses or self.signature not in (None, row["signature"])

    def clears(self, event: events.SignaturesRead, ancestor: Evidence) -> bool:
        return _recovered([row["signature"] for row in ancestor], event.statuses, self.statuses)


class RewiredCondition(BaseCondition):
    """A feature depends on different features than at the parent checkpoint."""

    listens_to: ClassVar = events.DependenciesCompared
    resolved_when: ClassVar = "another comparison at the same checkpoint finds no difference"

    kind: Literal["rewired"]
    feature: FeatureId | None = Field(
        None, title="Feature", examples=["F42318"],
        description="Id of the feature. Default: any feature whose dependencies were found.",
    )  # fmt: skip

    def match(self, event: events.DependenciesCompared) -> Evidence | None:
        return [vars(one).copy() for one in event.features if one.rewired and self._covers(one.feature)] or None

    def summary(self, event: events.DependenciesCompared, evidence: Evidence) -> str:
        return f"{', '.join(row['feature'] for row in evidence)} rewired"

    def keeps(self, event: events.DependenciesCompared, row: dict[str, Any]) -> bool:
        return not self._covers(row["feature"]) or row["feature"] not in {one.feature for one in event.features}

    def _covers(self, feature: str) -> bool:
        return self.feature in (None, feature)


class QualityCondition(BaseCondition):
    """The FVU of a checkpoint exceeds a limit, or a multiple of its parent's."""

    listens_to: ClassVar = events.QualityMeasured
    resolved_when: ClassVar = "the FVU of a later checkpoint is within the limit"

    kind: Literal["quality"]
    max_fvu: float | None = Field(
        None, gt=0, allow_inf_nan=False, title="Largest FVU", examples=[0.3], description="Largest FVU of a checkpoint."
    )
    max_fvu_ratio: float | None = Field(
        None, gt=1, allow_inf_nan=False, title="Times the parent's FVU", examples=[1.2],
        description="Largest ratio of a checkpoint's FVU to that of its parent.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _limited(self) -> Self:
        if self.max_fvu is None and self.max_fvu_ratio is None:
            raise ValueError("a quality rule needs max_fvu or max_fvu_ratio")
        return self

    def match(self, event: events.QualityMeasured) -> Evidence | None:
        limits = [] if self.max_fvu is None else [self.max_fvu]
        if self.max_fvu_ratio is not None and event.parent_fvu is not None:
            limits.append(self.max_fvu_ratio * event.parent_fvu)
        if not limits or event.fvu <= min(limits):
            return None
        return [{"fvu": event.fvu, "limit": min(limits), "parent_fvu": event.parent_fvu}]

    def summary(self, event: events.QualityMeasured, evidence: Evidence) -> str:
        return f"FVU {event.fvu:.3g} exceeds the limit of {evidence[0]['limit']:.3g}"

    def continues(self, evidence: Evidence, ancestor: Evidence) -> bool:
        return bool(ancestor[0]["limit"] >= evidence[0]["limit"])

    def clears(self, event: events.QualityMeasured, ancestor: Evidence) -> bool:
        return bool(event.fvu <= ancestor[0]["limit"])


class RunFailedCondition(BaseCondition):
    """Runs of one kind fail in a family, with no success in between."""

    listens_to: ClassVar = events.RunsFailed
    resolved_when: ClassVar = "a run of the kind succeeds"

    kind: Literal["run_failed"]
    runs: list[Annotated[str, Field(pattern="^[a-z_]{1,100}$")]] = Field(
        default=[], max_length=20, examples=[["onboard"]],
        description="Kinds of runs. Default: every kind, each counted on its own.",
    )  # fmt: skip
    at_least: int = Field(1, ge=1, description="Number of failed runs that raises the alert.")

    def match(self, event: events.RunsFailed) -> Evidence | None:
        if (self.runs and event.kind not in self.runs) or len(event.failures) < self.at_least:
            return None
        return [failure_row(run, checkpoint) for run, checkpoint in event.failures[-MOST_ROWS:]]

    def summary(self, event: events.RunsFailed, evidence: Evidence) -> str:
        count, last = len(event.failures), evidence[-1]
        title = (last["error"] or {}).get("title", "unknown error")
        times, which = (f" {count} times", ", last") if count > 1 else ("", "")
        where = f"{which} for {last['checkpoint']}" if last["checkpoint"] else ""
        return f"{event.kind} failed{times}{where}: {title}"


class AbsenceCondition(BaseCondition):
    """No checkpoint of a family is judged for a number of days."""

    listens_to: ClassVar = events.LastJudged
    resolved_when: ClassVar = "a checkpoint is judged"

    kind: Literal["absence"]
    days: float = Field(gt=0, le=3650, examples=[14], description="Days without a judged checkpoint.")

    def match(self, event: events.LastJudged) -> Evidence | None:
        if event.now - event.at <= timedelta(days=self.days):
            return None
        return [{"since": event.at.isoformat(), "days": self.days}]

    def summary(self, event: events.LastJudged, evidence: Evidence) -> str:
        return f"no checkpoint was judged for {self.days:g} days (since {event.at.date().isoformat()})"


Condition = Annotated[
    FeatureCondition
    | WatchedCondition
    | TagCondition
    | StatusCountCondition
    | PlacesCondition
    | SignatureCondition
    | RewiredCondition
    | QualityCondition
    | RunFailedCondition
    | AbsenceCondition,
    Field(discriminator="kind"),
]
CONDITION: TypeAdapter[Condition] = TypeAdapter(Condition)
KINDS: dict[str, type[BaseCondition]] = {
    get_args(cls.model_fields["kind"].annotation)[0]: cls for cls in get_args(get_args(Condition)[0])
}
"""Kind -> its class, in the order in which forms and docs list them."""
WEBHOOK_PAUSED = "webhook_paused"
"""The kind of alerts that no rule raises."""
SWEPT = [*(kind for kind, cls in KINDS.items() if issubclass(cls.listens_to, events.FamilyEvent)), WEBHOOK_PAUSED]
"""Kinds of alerts that a sweep raises and resolves."""
if TYPE_CHECKING:
    AlertKind = str
else:
    AlertKind = Literal[(*KINDS, WEBHOOK_PAUSED)]


def _recovered(names: "Iterable[str]", statuses: "Mapping[str, str]", alarming: "Sequence[str]") -> bool:
    """Whether everything is out of the alarming statuses. No verdict, or an indeterminate one, does not show that."""
    return all(statuses.get(name, Status.INDETERMINATE) not in {*alarming, Status.INDETERMINATE} for name in names)


def _named(evidence: Evidence, word: str) -> str:
    """`F1 (sorry) broadened, F2 narrowed and 4 more`. word: the field of the rows with the verdict."""
    first = evidence[:_NAMED_IN_SUMMARY]
    labels = [f" ({row['label']})" if row["label"] else "" for row in first]
    named = [f"{row['feature']}{label} {row[word]}" for row, label in zip(first, labels, strict=True)]
    rest = len(evidence) - len(named)
    return ", ".join(named) + (f" and {rest} more" if rest else "")
