"""Features: lists for a checkpoint and a baseline, single ones, and what people say of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy.orm import Session

from service.checkpoints import logic as checkpoints
from service.checkpoints import queries as checkpoint_queries
from service.dependencies import queries as dependencies
from service.features import queries
from service.features.queries import Filter
from service.features.schemas import (
    FeatureDetail,
    FeaturePatch,
    FeatureRow,
    Point,
    VerdictRow,
    feature_detail,
    feature_row,
    point,
)
from service.features.sorting import Order
from service.kit.ids import parse_feature_id
from service.kit.pages import check
from service.kit.problems import NotFoundError
from service.lineage import logic as lineage
from service.models import Checkpoint, Family, Feature
from service.verdicts import compare as verdicts


@dataclass
class Comparison:
    """A checkpoint and what it is compared with. `stored`: the verdict table answers it."""

    family: Family
    checkpoint: Checkpoint
    baseline: Checkpoint | None
    stored: bool
    computed: Sequence[VerdictRow] | None = None
    """All verdicts, where the table has them not; filled once per request."""


def comparison(session: Session, family: Family, checkpoint: str | None, baseline: str | None) -> Comparison:
    """What a request asks for: the newest judged checkpoint against its parent, unless it names others.

    Raises 404 for unknown ones, 409 for ones that are not judged.
    """
    chosen = checkpoints.get_judged(session, family, checkpoint)
    parent = checkpoint_queries.get(session, chosen.parent_id) if chosen.parent_id else None
    if baseline is None or (parent is not None and parent.name == baseline):
        return Comparison(family, chosen, parent, True)
    return Comparison(family, chosen, checkpoints.get_judged(session, family, baseline), False)


def rows(
    session: Session, asked: Comparison, *, wanted: Filter, order: Order, after: list[Any] | None, limit: int
) -> list[tuple[VerdictRow, Feature]]:
    """Verdicts with their features; a row more than `limit` where there are more."""
    if asked.stored:
        stored = queries.page(
            session,
            family_id=asked.family.id,
            checkpoint_id=asked.checkpoint.id,
            wanted=wanted,
            keys=order.keys(),
            after=after,
            limit=limit,
        )
        return cast(list[tuple[VerdictRow, Feature]], list(stored))
    found = _select(compare(session, asked), session, asked.family, wanted)
    found.sort(key=lambda row: order.rank(order.values(row)))
    if after is not None:
        check(order.keys(), after)
        start = order.rank(after)
        found = [row for row in found if order.rank(order.values(row)) > start]
    found = found[: limit + 1]
    features = queries.by_numbers(session, asked.family.id, [int(row.feature) for row in found])
    return [(row, features[int(row.feature)]) for row in found]


def compare(session: Session, asked: Comparison) -> Sequence[VerdictRow]:
    """Verdicts of a checkpoint against any other one, from the stored measurements."""
    if asked.computed is None:
        assert asked.baseline is not None
        found = verdicts.compare(session, asked.family, asked.checkpoint, asked.baseline)
        asked.computed = cast(Sequence[VerdictRow], found)
    return asked.computed


def counts(session: Session, asked: Comparison, wanted: Filter | None = None) -> dict[str, int]:
    """Status -> how many features have it; of those that fit the filter."""
    if asked.stored:
        return queries.counts(session, asked.family.id, asked.checkpoint.id, wanted)
    found = compare(session, asked)
    if wanted is not None:
        found = _select(found, session, asked.family, wanted)
    return dict(Counter(str(row.status) for row in found))


def of_numbers(session: Session, asked: Comparison, numbers: Sequence[int]) -> list[tuple[VerdictRow, Feature]]:
    """Verdicts of a few features, with these, in the order of `numbers`; those that have none are left out."""
    if asked.stored:
        stored = queries.of_numbers(session, asked.family.id, asked.checkpoint.id, numbers)
        found = {feature.number: cast(tuple[VerdictRow, Feature], (row, feature)) for row, feature in stored}
    else:
        wanted = set(numbers)
        features = queries.by_numbers(session, asked.family.id, numbers)
        found = {n: (row, features[n]) for row in compare(session, asked) if (n := int(row.feature)) in wanted}
    return [found[number] for number in numbers if number in found]


def intervals(
    session: Session, asked: Comparison, wanted: Filter
) -> Sequence[tuple[int, int, float | None, float | None]]:
    """(number, firings, ends of the projection ratio's interval) of the features that fit the filter."""
    if asked.stored:
        return queries.intervals(session, asked.family.id, asked.checkpoint.id, wanted)
    found = _select(compare(session, asked), session, asked.family, wanted)
    return [(int(row.feature), row.firings, row.projection_ratio_lo, row.projection_ratio_hi) for row in found]


def show(session: Session, asked: Comparison, found: Sequence[tuple[VerdictRow, Feature]]) -> list[FeatureRow]:
    """Rows as the API shows them."""
    born = checkpoint_queries.names(session, list({feature.born_in for _, feature in found}))
    baseline = asked.baseline.name if asked.baseline else None
    rows = [feature_row(row, feature, born[feature.born_in], asked.checkpoint.name, baseline) for row, feature in found]
    if asked.stored:  # against another baseline than the parent the flag would say something else
        rewired = dependencies.rewired(session, [asked.checkpoint.id], [feature.number for _, feature in found])
        for row, (_, feature) in zip(rows, found, strict=True):
            row.rewired = rewired.get((asked.checkpoint.id, feature.number))
    return rows


def get(session: Session, family: Family, feature_id: str) -> Feature:
    """A feature by its public id, or 404."""
    try:
        number = parse_feature_id(feature_id)
    except ValueError as error:
        raise NotFoundError(f"{error}.", code="unknown-feature") from None
    # Larger ones than the column holds would be an error of the database.
    feature = queries.get(session, family.id, number) if number <= queries.MAX_NUMBER else None
    if feature is None:
        raise NotFoundError(f"The family {family.name} has no feature {feature_id}.", code="unknown-feature")
    return feature


def trajectory(session: Session, family: Family, feature: Feature) -> list[Point]:
    """A feature's verdicts, parents before their children, each against the parent."""
    course = queries.course(session, family.id, feature.number)
    rewired = dependencies.rewired(session, [row.checkpoint_id for row, _, _ in course], [feature.number])
    points = []
    for row, name, parent in course:
        points.append(point(row, name, parent))
        points[-1].rewired = rewired.get((row.checkpoint_id, feature.number))
    return points


def detail(session: Session, family: Family, feature: Feature) -> FeatureDetail:
    """A feature with its newest verdict."""
    points = trajectory(session, family, feature)
    born = checkpoint_queries.names(session, [feature.born_in])[feature.born_in]
    return feature_detail(feature, born, points[-1] if points else None, lineage.of_feature(session, feature))


def patch(feature: Feature, body: FeaturePatch) -> None:
    """Set what the request names; a label of null removes it."""
    if "label" in body.model_fields_set:
        feature.label = body.label or None
    if body.tags is not None:
        feature.tags = sorted(set(body.tags))
    if body.watched is not None:
        feature.watched = body.watched


def _select(found: Sequence[VerdictRow], session: Session, family: Family, wanted: Filter) -> list[VerdictRow]:
    """What `queries.page` selects in SQL."""
    chosen = list(found)
    if wanted.statuses:
        chosen = [row for row in chosen if row.status in wanted.statuses]
    if wanted.min_change is not None:
        chosen = [row for row in chosen if row.change >= wanted.min_change]
    if wanted.max_q is not None:
        chosen = [row for row in chosen if row.q_value is not None and row.q_value <= wanted.max_q]
    if wanted.changed:
        chosen = [row for row in chosen if row.status != "absent" or row.change > 0]
    if wanted.by_feature:
        numbers = queries.matching(session, family.id, wanted)
        chosen = [row for row in chosen if int(row.feature) in numbers]
    return chosen
