"""SQL of features, their verdicts and codes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Executable, Select, Text, bindparam, cast, func, or_, select
from sqlalchemy.orm import Session, aliased

from featurewatch.service.kit.ids import parse_feature_id
from featurewatch.service.kit.listed import one_of
from featurewatch.service.kit.pages import SortKey, Statement, keyset
from featurewatch.service.models import Checkpoint, Code, DependencyGraph, Feature, Verdict
from featurewatch.service.verdicts.figures import COLUMNS
from featurewatch.service.verdicts.statuses import Status
from featurewatch.service.verdicts.table import row_type

MAX_NUMBER = 2**31 - 1
"""The largest feature number that the column can hold."""
_FEW = 500


@dataclass(frozen=True)
class Filter:
    """Conditions on the features of a list. None: no condition."""

    statuses: tuple[str, ...] = ()
    q: str | None = None
    tag: str | None = None
    watched: bool | None = None
    min_change: float | None = None
    max_q: float | None = None
    """Excludes features without a q-value."""
    changed: bool = False
    """Excludes features that were already gone at the baseline and still are."""

    @property
    def by_feature(self) -> bool:
        """Whether any condition needs the feature table."""
        return self.q is not None or self.tag is not None or self.watched is not None


def page(
    session: Session,
    *,
    family_id: str,
    checkpoint_id: str,
    wanted: Filter,
    keys: Sequence[SortKey],
    after: Sequence[Any] | None,
    limit: int,
) -> Sequence[Any]:
    """Stored verdicts of a checkpoint as plain rows; `limit` + 1 if there are more."""
    statement = select(*_VERDICT).where(Verdict.checkpoint_id == checkpoint_id, *_by_verdict(wanted))
    if wanted.by_feature:
        # Scanning in the order of changes for a rare tag would visit every row. Few features are looked up by number.
        numbers = matching(session, family_id, wanted, limit=_FEW + 1)
        if len(numbers) <= _FEW:
            statement = statement.where(Verdict.feature.in_(numbers))
        else:
            same = (Feature.family_id == Verdict.family_id) & (Feature.number == Verdict.feature)
            statement = _narrow(statement.join(Feature, same), wanted)
    return _plain(session, keyset(statement, keys, after, limit))


def matching(session: Session, family_id: str, wanted: Filter, limit: int | None = None) -> set[int]:
    """Numbers of the features of a family that meet the filter's conditions on features."""
    return set(session.scalars(_narrow(_numbers(family_id), wanted).limit(limit)))


def watched(session: Session, family_id: str) -> Sequence[int]:
    """Numbers of the family's watched features."""
    return session.scalars(_WATCHED, {"family": family_id}).all()


def by_numbers(session: Session, family_id: str, numbers: Sequence[int]) -> dict[int, Any]:
    """Number -> feature as a plain row, with the name of `born_in` as `born_in_name`. Unknown numbers are skipped."""
    return _by_number(session, _BY_NUMBERS, family_id, numbers)


def names(session: Session, family_id: str, numbers: Sequence[int]) -> dict[int, Any]:
    """Number -> `label`, `auto_label` and `top_tokens` as a plain row. Unknown numbers are skipped."""
    return _by_number(session, _NAMES, family_id, numbers)


def stored(session: Session, checkpoint_id: str) -> Sequence[Sequence[Any]]:
    """All stored verdicts of a checkpoint as plain rows of COLUMNS, in the order of features."""
    statement = select(*(getattr(Verdict, name) for name in COLUMNS)).where(Verdict.checkpoint_id == checkpoint_id)
    return session.execute(statement.order_by(Verdict.feature)).all()


def following(session: Session, family_id: str, after: int, limit: int) -> Sequence[Feature]:
    """Features of a family with numbers over `after`, ascending."""
    statement = select(Feature).where(Feature.family_id == family_id, Feature.number > after)
    return session.scalars(statement.order_by(Feature.number).limit(limit)).all()


def of_numbers(session: Session, checkpoint_id: str, numbers: Sequence[int]) -> Sequence[Any]:
    """Stored verdicts of a few features as plain rows."""
    return _plain(session, _OF_NUMBERS, checkpoint=checkpoint_id, numbers=numbers)


def course(session: Session, family_id: str, number: int) -> Sequence[Any]:
    """Verdicts of one feature as plain rows, with `checkpoint_name` and `parent_name`; parents before children."""
    return _plain(session, _COURSE, family=family_id, number=number)


def counts(session: Session, checkpoint_ids: Sequence[str], statuses: Sequence[str]) -> Sequence[tuple[str, str, int]]:
    """(checkpoint id, status, number of features that came into it there)."""
    key = (Verdict.checkpoint_id, Verdict.status)
    changed = _by_verdict(Filter(tuple(statuses), changed=True))
    here = one_of(Verdict.checkpoint_id, values=checkpoint_ids)
    return session.execute(select(*key, func.count()).where(here, *changed).group_by(*key)).all()


def changes(
    session: Session, checkpoint_ids: Sequence[str], statuses: Sequence[str]
) -> Sequence[tuple[str, int, float]]:
    """(checkpoint id, feature number, change) of the features that came into one of the statuses."""
    statement = select(Verdict.checkpoint_id, Verdict.feature, Verdict.change).where(
        one_of(Verdict.checkpoint_id, values=checkpoint_ids), Verdict.status.in_(statuses), Verdict.change > 0
    )
    return session.execute(statement).all()


def statuses(session: Session, family_id: str, numbers: Sequence[int]) -> Sequence[tuple[int, str, str]]:
    """(number, checkpoint id, status) of a few features in all checkpoints that have a verdict."""
    columns = (Verdict.feature, Verdict.checkpoint_id, Verdict.status)
    statement = select(*columns).where(Verdict.family_id == family_id, one_of(Verdict.feature, values=numbers))
    return [(row[0], row[1], row[2]) for row in session.execute(statement)]


def replaced_by(session: Session, family_id: str, feature: str) -> Sequence[tuple[int, str, list[Any]]]:
    """(number, checkpoint, successors) of the features that `feature`, such as `F7`, succeeded; parents first."""
    statement = (
        select(Verdict.feature, Checkpoint.name, Verdict.successors)
        # Joined through the checkpoints: an index finds the few replaced features of each.
        .join(Checkpoint, Checkpoint.id == Verdict.checkpoint_id)
        .where(Checkpoint.family_id == family_id, Verdict.status == Status.REPLACED)
        .where(cast(Verdict.successors, Text).contains(json.dumps(feature), autoescape=True))
        .order_by(Checkpoint.created_at, Checkpoint.id, Verdict.feature)
    )
    return [(row[0], row[1], row[2]) for row in session.execute(statement)]


def codes(session: Session, family_id: str) -> Sequence[tuple[Code, str]]:
    """(code, checkpoint) of a family, the newest first."""
    return session.execute(_CODES, {"family": family_id}).all()


def example_files(session: Session, family_id: str) -> Sequence[tuple[str, str, str]]:
    """(artifact of the code, that of its examples, checkpoint) of a family, the newest first."""
    return session.execute(_EXAMPLE_FILES, {"family": family_id}).all()


def rewired(
    session: Session, checkpoint_ids: Sequence[str], numbers: Sequence[int] | None = None
) -> dict[tuple[str, int], bool]:
    """(checkpoint id, feature number) -> whether its dependencies changed since the parent, where known."""
    statement = _REWIRED if numbers is None else _REWIRED_OF
    rows = session.execute(statement, {"checkpoints": checkpoint_ids, "numbers": numbers})
    return {(checkpoint_id, number): bool(value) for checkpoint_id, number, value in rows}


# Built once: building such a statement and looking up its compiled form takes longer than running it.
_VERDICT = [Verdict.checkpoint_id, *(getattr(Verdict, name) for name in COLUMNS)]
_FEATURE = [column for column in Feature.__table__.c if column.name not in ("logits", "created_at")]
_BY_NUMBERS = (
    select(*_FEATURE, Checkpoint.name.label("born_in_name"))
    .join(Checkpoint, Checkpoint.id == Feature.born_in)
    .where(Feature.family_id == bindparam("family"), one_of(Feature.number, "numbers"))
)
_NAMES = select(Feature.number, Feature.label, Feature.auto_label, Feature.top_tokens).where(
    Feature.family_id == bindparam("family"), one_of(Feature.number, "numbers")
)
_WATCHED = select(Feature.number).where(Feature.family_id == bindparam("family"), Feature.watched.is_(True))
_OF_NUMBERS = select(*_VERDICT).where(
    Verdict.checkpoint_id == bindparam("checkpoint"), one_of(Verdict.feature, "numbers")
)
_PARENT = aliased(Checkpoint)
_COURSE = (
    select(*_VERDICT, Checkpoint.name.label("checkpoint_name"), _PARENT.name.label("parent_name"))
    .join(Checkpoint, Checkpoint.id == Verdict.checkpoint_id)
    .outerjoin(_PARENT, _PARENT.id == Checkpoint.parent_id)
    .where(Verdict.family_id == bindparam("family"), Verdict.feature == bindparam("number"))
    .order_by(Checkpoint.created_at, Checkpoint.id)
)
_REWIRED = (
    select(DependencyGraph.checkpoint_id, DependencyGraph.feature, DependencyGraph.rewired)
    .where(
        one_of(DependencyGraph.checkpoint_id, "checkpoints"),
        DependencyGraph.rewired.is_not(None),
    )
    .order_by(DependencyGraph.created_at)
)
_REWIRED_OF = _REWIRED.where(one_of(DependencyGraph.feature, "numbers"))
_CODES = (
    select(Code, Checkpoint.name)
    .join(Checkpoint, Checkpoint.id == Code.checkpoint_id)
    .where(Code.family_id == bindparam("family"))
    .order_by(Checkpoint.created_at.desc(), Checkpoint.id.desc())
)
_EXAMPLE_FILES = _CODES.with_only_columns(Code.artifact, Code.examples, Checkpoint.name)


def _by_number(session: Session, statement: Executable, family_id: str, numbers: Sequence[int]) -> dict[int, Any]:
    rows = _plain(session, statement, family=family_id, numbers=numbers) if numbers else []
    return {feature.number: feature for feature in rows}


def _plain(session: Session, statement: Executable, **values: Any) -> Sequence[Any]:
    """Rows without the ORM, which would take most of the time of a page that is only shown."""
    result = session.connection().execute(statement, values)
    return list(map(row_type(tuple(result.keys()))._make, result.all()))


def _numbers(family_id: str) -> Select[int]:
    return select(Feature.number).where(Feature.family_id == family_id)


def _by_verdict(wanted: Filter) -> list[ColumnElement[bool]]:
    """The filter's conditions on the verdict table."""
    conditions: list[ColumnElement[bool]] = []
    if wanted.statuses:
        conditions.append(Verdict.status.in_(wanted.statuses))
    if wanted.min_change is not None:
        conditions.append(Verdict.change >= wanted.min_change)
    if wanted.max_q is not None:
        conditions.append(Verdict.q_value <= wanted.max_q)
    if wanted.changed:
        conditions.append(or_(Verdict.status != Status.ABSENT, Verdict.change > 0))
    return conditions


def _narrow(statement: Statement, wanted: Filter) -> Statement:
    if wanted.watched is not None:
        statement = statement.where(Feature.watched.is_(wanted.watched))
    if wanted.tag is not None:
        # Tags are lower case and have no characters that JSON escapes, so the column's text can be searched.
        statement = statement.where(cast(Feature.tags, Text).contains(json.dumps(wanted.tag), autoescape=True))
    if wanted.q is not None:
        # JSON columns are searched as they are stored: non-ASCII characters are escaped.
        stored = json.dumps(wanted.q)[1:-1]
        conditions = [
            Feature.label.icontains(wanted.q, autoescape=True),
            Feature.auto_label.icontains(wanted.q, autoescape=True),
            Feature.model_label.icontains(wanted.q, autoescape=True),
            cast(Feature.top_tokens, Text).icontains(stored, autoescape=True),
        ]
        number = _number(wanted.q)
        if number is not None:
            conditions.append(Feature.number == number)
        statement = statement.where(or_(*conditions))
    return statement


def _number(text: str) -> int | None:
    """The number of a feature id; None if the text is not a possible one."""
    try:
        number = parse_feature_id(text)
    except ValueError:
        return None
    return number if number <= MAX_NUMBER else None
