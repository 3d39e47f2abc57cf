"""Alert rules against the dependencies of a checkpoint's features: one that is computed from others now."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy.orm import Session

from featurewatch.service.alerts import queries, raising
from featurewatch.service.alerts.schemas import CONDITION, RewiredCondition
from featurewatch.service.models import Alert, Checkpoint, Family


class Looked(NamedTuple):
    """A feature whose dependencies were held against the parent's."""

    feature: str
    rewired: bool | None
    agreement: float | None
    gained: list[str]
    lost: list[str]


def evaluate(session: Session, *, family: Family, checkpoint: Checkpoint, looked: Sequence[Looked]) -> list[Alert]:
    """Hold the rules on rewiring against what was looked at, in the transaction that wrote it. The alerts now raised.

    An alert is resolved where a second look at the same checkpoint finds none of its features rewired. A descendant
    that is wired as its parent says nothing: the change is still there.
    """
    raised = []
    for rule in queries.rules_for(session, family.id):
        condition = CONDITION.validate_python(rule.condition)
        if not isinstance(condition, RewiredCondition):
            continue
        of_these = [one for one in looked if condition.feature in (None, one.feature)]
        seen = {one.feature for one in of_these}
        known = [one for one in raising.held(session, rule, checkpoint) if one["feature"] not in seen]
        evidence = known + [one._asdict() for one in of_these if one.rewired]
        names = ", ".join(one["feature"] for one in evidence)
        summary = f"{checkpoint.name}: computed from other features: {names}"
        raised.append(raising.settle(session, rule, family, checkpoint, summary, evidence))
    return [alert for alert in raised if alert is not None]
