"""What alert rules listen to: something that was learned about a checkpoint or a family."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # The command reads the kinds of rules and starts without the database's tables.
    from featurewatch.service.models import Feature, Reading, Run, Signature, Verdict

    Transition = tuple[Verdict, Feature]
    Move = tuple[Verdict, Feature, str | None]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something was measured in a checkpoint of a family. The alerts belong to the checkpoint."""

    family_id: str


@dataclass(frozen=True, kw_only=True)
class FamilyEvent(Event):
    """A sweep looked at a family. The alerts are resolved when a sweep no longer finds what raised them."""

    @property
    def key(self) -> str:
        """Tells the alerts of one rule apart."""
        return self.family_id


@dataclass(frozen=True, kw_only=True)
class FeaturesJudged(Event):
    """A checkpoint has verdicts."""

    transitions: "Callable[[Collection[str]], Sequence[Transition]]"
    """Features that came into one of some statuses, largest change first"""
    statuses: Callable[[Collection[str]], Mapping[str, str]]
    """Feature ids -> the status of each that has a verdict"""
    moves: "Callable[[Collection[str]], Sequence[Move]]"
    """Features whose places came into some words, largest gain or loss first. Last: the places at the parent"""
    places: Callable[[Collection[str]], Mapping[str, str]]
    """Feature ids -> the places of each that has them"""


@dataclass(frozen=True, kw_only=True)
class QualityMeasured(Event):
    """The FVU of the dictionary on a checkpoint is known."""

    fvu: float
    parent_fvu: float | None


@dataclass(frozen=True, kw_only=True)
class SignaturesRead(Event):
    """Signatures were read in a checkpoint."""

    readings: "Sequence[tuple[Reading, Signature]]"

    @property
    def statuses(self) -> dict[str, str]:
        """Signature name -> status."""
        return {signature.name: reading.status for reading, signature in self.readings}


@dataclass(frozen=True)
class ComparedFeature:
    """A feature whose dependencies were compared with those at the parent."""

    feature: str
    rewired: bool | None
    """None: the comparison cannot tell"""
    agreement: float | None
    gained: list[str]
    lost: list[str]


@dataclass(frozen=True, kw_only=True)
class DependenciesCompared(Event):
    """The dependencies of some features of a checkpoint were found."""

    features: Sequence[ComparedFeature]


@dataclass(frozen=True, kw_only=True)
class LastJudged(FamilyEvent):
    """When a checkpoint of the family was last judged; before the first one, when the family was created."""

    at: datetime
    now: datetime


@dataclass(frozen=True, kw_only=True)
class RunsFailed(FamilyEvent):
    """Runs of one kind failed, and none has succeeded since."""

    kind: str
    failures: "Sequence[tuple[Run, str | None]]"
    """Run and the name of its checkpoint, oldest first"""

    @property
    def key(self) -> str:
        return f"{self.family_id}:{self.kind}"
