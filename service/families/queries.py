"""SQL of families."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, exists, select
from sqlalchemy.orm import Session

from featurewatch.service.kit.pages import SortKey, keyset
from featurewatch.service.models import Deletion, Family

LISTED = ~exists().where(Deletion.family_id == Family.id)
"""Families that are not being deleted. Used by every query that lists families or rows of several families."""
# Built once: nearly every request runs it, and it takes longer to build than to run.
_BY_NAME = select(Family).where(Family.name == bindparam("name"), LISTED)


def by_name(session: Session, name: str) -> Family | None:
    """The family with this name."""
    return session.scalar(_BY_NAME, {"name": name})


def page(session: Session, *, after: Sequence[Any] | None, limit: int) -> Sequence[Family]:
    """Families by name; one row more than `limit` if there are more."""
    return session.scalars(keyset(select(Family).where(LISTED), [SortKey(Family.name)], after, limit)).all()
