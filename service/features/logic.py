"""Features: lists for a checkpoint and a baseline, single features, and what people set on them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.checkpoints import queries as checkpoint_queries
from featurewatch.service.features import queries
from featurewatch.service.features.queries import Filter
from featurewatch.service.features.schemas import (
    FeatureDetail,
    FeaturePatch,
    FeatureRow,
    Point,
    Trajectory,
    feature_fields,
    feature_row,
    point,
)
from featurewatch.service.features.sorting import Order
from featurewatch.service.kit.ids import feature_id, parse_feature_id
from featurewatch.service.kit.pages import Page, Pager, check
from featurewatch.service.kit.problems import NotFoundError
from featurewatch.service.lineage import logic as lineage
from featurewatch.service.models import Checkpoint, Family, Feature
from featurewatch.service.verdicts import stored
from featurewatch.service.verdicts.arrays import among
from featurewatch.service.verdicts.compare import compare
from featurewatch.service.verdicts.statuses import N_CODES, Places, Status
from featurewatch.service.verdicts.table import Table, VerdictRow


@dataclass
class Comparison:
    """A checkpoint, its baseline, and what has been looked up so far."""

    family: Family
    checkpoint: Checkpoint
    baseline: Checkpoint | None
    stored: bool
    """Whether the baseline is the parent, so that the stored verdicts answer it"""
    session: Session
    chosen: dict[Filter, NDArray[np.int64]] = field(default_factory=dict)
    verdicts: dict[int, VerdictRow] = field(default_factory=dict)
    shown: dict[int, FeatureRow] = field(default_factory=dict)

    @cached_property
    def table(self) -> Table:
        """The verdicts of all features as columns. Stored verdicts have only the packed figures."""
        if self.stored:
            return stored.standing(self.session, self.checkpoint)
        assert self.baseline is not None
        return compare(self.session, self.family, self.checkpoint, self.baseline, keep=True)

    @cached_property
    def watched(self) -> frozenset[int]:
        """Numbers of the family's watched features."""
        return frozenset(queries.watched(self.session, self.family.id))


def comparison(session: Session, family: Family, checkpoint: str | None, baseline: str | None) -> Comparison:
    """The comparison that a request asks for. Default: the newest judged checkpoint against its parent.

    Raises 404 for unknown checkpoints and 409 for checkpoints that are not judged.
    """
    chosen = checkpoints.get_judged(session, family, checkpoint)
    if baseline is None:
        parent = session.get(Checkpoint, chosen.parent_id) if chosen.parent_id else None
        return Comparison(family, chosen, parent, True, session)
    other = checkpoints.get(session, family, baseline)
    if other.id == chosen.parent_id:
        return Comparison(family, chosen, other, True, session)
    return Comparison(family, chosen, checkpoints.check_judged(other), False, session)


def rows(
    session: Session, comparison: Comparison, *, wanted: Filter, order: Order, after: list[Any] | None, limit: int
) -> Sequence[VerdictRow]:
    """Verdicts of the features that match; `limit` + 1 if there are more."""
    verdicts: Sequence[VerdictRow]
    if comparison.stored:
        verdicts = queries.page(
            session,
            family_id=comparison.family.id,
            checkpoint_id=comparison.checkpoint.id,
            wanted=wanted,
            keys=order.keys(),
            after=after,
            limit=limit,
        )
    else:
        if after is not None:
            check(order.keys(), after)
        positions = order.first(comparison.table, chosen(session, comparison, wanted), after, limit + 1)
        verdicts = comparison.table.rows(positions.tolist())
    comparison.verdicts |= {row.feature: row for row in verdicts}
    return verdicts


def page(session: Session, paging: Pager, comparison: Comparison, wanted: Filter, order: Order) -> Page[FeatureRow]:
    """A page of a comparison's features."""
    numbers, cursor = page_numbers(session, paging, comparison, wanted, order)
    features = shown(session, comparison, numbers)
    return Page(data=[features[number] for number in numbers], next_cursor=cursor)


def page_numbers(
    session: Session, paging: Pager, comparison: Comparison, wanted: Filter, order: Order
) -> tuple[list[int], str | None]:
    """The numbers of a page's features, and the cursor of the next page."""
    name = f"{comparison.checkpoint.id}:{comparison.baseline and comparison.baseline.id}:{wanted}:{order}"
    found = rows(session, comparison, wanted=wanted, order=order, after=paging.after(name), limit=paging.limit)
    verdicts, cursor = paging.page(found, name, order.values)
    return [verdict.feature for verdict in verdicts], cursor


def chosen(session: Session, comparison: Comparison, wanted: Filter) -> NDArray[np.int64]:
    """Positions in the table of the features that match the filter, ascending. `queries.page` does the same in SQL."""
    if wanted not in comparison.chosen:
        comparison.chosen[wanted] = _chosen(session, comparison, wanted)
    return comparison.chosen[wanted]


def _chosen(session: Session, comparison: Comparison, wanted: Filter) -> NDArray[np.int64]:
    table = comparison.table
    positions = table.having(wanted.statuses)
    if wanted.changed:
        gone = table.statuses[positions] == Status.ABSENT.code
        positions = positions[~gone | (table.figures["change"][positions] > 0)]
    if wanted.moved:
        positions = np.union1d(positions, table.placed(wanted.moved))
    if wanted.places:
        positions = np.intersect1d(positions, table.placed(wanted.places))
    if wanted.min_change is not None:
        positions = positions[
            table.figures["change"][positions] >= np.float64(wanted.min_change)
        ]  # 1e300 overflows float32
    if wanted.max_q is not None:
        positions = positions[table.figures["q_value"][positions] <= wanted.max_q]
    if wanted.by_feature:
        alone = (wanted.q, wanted.tag, wanted.watched) == (None, None, True)
        numbers = comparison.watched if alone else queries.matching(session, comparison.family.id, wanted)
        positions = positions[among(table.numbers[positions], numbers)]
    return positions


def counts(session: Session, comparison: Comparison, wanted: Filter | None = None) -> dict[str, int]:
    """Status -> number of features that have it and match the filter."""
    if wanted is None:
        return comparison.table.counts
    sizes = np.bincount(comparison.table.statuses[chosen(session, comparison, wanted)], minlength=N_CODES)
    return {status.value: int(sizes[status.code]) for status in Status if sizes[status.code]}


def place_counts(comparison: Comparison) -> dict[Places, int]:
    """Places -> number of features of the comparison."""
    counts = comparison.table.place_counts
    return {word: counts.get(word, 0) for word in Places}


def shown(session: Session, comparison: Comparison, numbers: Iterable[int]) -> dict[int, FeatureRow]:
    """Feature number -> the feature as the API shows it, if it has a verdict. Nothing is looked up twice."""
    missing = [number for number in dict.fromkeys(numbers) if number not in comparison.shown]
    if missing:
        _show(session, comparison, missing)
    return comparison.shown


def _show(session: Session, comparison: Comparison, numbers: Sequence[int]) -> None:
    unknown = [number for number in numbers if number not in comparison.verdicts]
    comparison.verdicts |= {row.feature: row for row in _verdicts(session, comparison, unknown)}
    features = queries.by_numbers(session, comparison.family.id, numbers)
    # Against a baseline other than the parent the flag would mean something else.
    rewired = queries.rewired(session, [comparison.checkpoint.id], numbers) if comparison.stored else {}
    checkpoint, baseline = comparison.checkpoint.name, comparison.baseline.name if comparison.baseline else None
    for number in numbers:
        if number in comparison.verdicts:
            row = feature_row(comparison.verdicts[number], features[number], checkpoint, baseline)
            row.rewired = rewired.get((comparison.checkpoint.id, number))
            comparison.shown[number] = row


def _verdicts(session: Session, comparison: Comparison, numbers: Sequence[int]) -> Sequence[VerdictRow]:
    """Verdicts of a few features, where they have one."""
    if comparison.stored:
        rows: Sequence[VerdictRow] = queries.of_numbers(session, comparison.checkpoint.id, numbers) if numbers else []
        return rows
    positions = comparison.table.find(numbers)
    return comparison.table.rows(positions[positions >= 0].tolist())


def get(session: Session, family: Family, name: str) -> Feature:
    """A feature by its public id, or 404."""
    try:
        number = parse_feature_id(name)
    except ValueError as error:
        raise NotFoundError(f"{error}.", code="unknown-feature") from None
    # The database refuses numbers that its column cannot hold.
    feature = session.get(Feature, (family.id, number)) if number <= queries.MAX_NUMBER else None
    if feature is None:
        raise NotFoundError(f"The family {family.name} has no feature {name}.", code="unknown-feature")
    return feature


def trajectory(session: Session, family: Family, feature: Feature) -> Trajectory:
    """A feature's verdicts, each against the parent; parents before children."""
    course = queries.course(session, family.id, feature.number)
    rewired = queries.rewired(session, [row.checkpoint_id for row in course], [feature.number])
    points = []
    for row in course:
        points.append(point(row, row.checkpoint_name, row.parent_name))
        points[-1].rewired = rewired.get((row.checkpoint_id, feature.number))
    return Trajectory(id=feature_id(feature.number), label=feature.label, auto_label=feature.auto_label, points=points)


def detail(session: Session, family: Family, feature: Feature, points: Sequence[Point] | None = None) -> FeatureDetail:
    """A feature with its newest verdict. points: its trajectory, if the caller has it."""
    points = trajectory(session, family, feature).points if points is None else points
    born = checkpoint_queries.names(session, [feature.born_in])[feature.born_in]
    return FeatureDetail(
        **feature_fields(feature, born),
        created_at=feature.created_at,
        last=points[-1] if points else None,
        lineage=lineage.of_feature(session, feature),
    )


def patch(feature: Feature, body: FeaturePatch) -> None:
    """Set the fields that the request contains. A null label removes the label."""
    if "label" in body.model_fields_set:
        feature.label = body.label or None
    if body.tags is not None:
        feature.tags = sorted(set(body.tags))
    if body.watched is not None:
        feature.watched = body.watched
