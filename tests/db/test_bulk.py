"""Rows that are given column by column, on both engines."""

from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from featurewatch.service.kit.bulk import insert_columns
from featurewatch.service.kit.db import Database
from featurewatch.service.models import Verdict
from tests import factories

SUCCESSORS = [{"id": "F7", "kind": "replaced", "cofiring": 0.83, "note": 'né "quoted" \\ back'}]


@pytest.fixture
def given(database: Database) -> dict[str, list[Any]]:
    """Columns of two verdicts: of a feature with all figures, and of one with as few as there can be."""
    with database.write() as session:
        family = factories.family(session)
        checkpoint = factories.checkpoint(session, family, "v1")
        for number in (3, 4):
            factories.feature(session, family, number, checkpoint)
        nothing = {name: [0.1 + 0.2, None] for name in Verdict.__table__.columns.keys()}  # noqa: SIM118
        return nothing | {
            "checkpoint_id": [checkpoint.id] * 2, "family_id": [family.id] * 2, "feature": [3, 4],
            "status": ["replaced", "indeterminate"], "previous_status": ["présent", None], "change": [1e-300, 0.0],
            "places": ["same", None],
            "firing_rate": [1 / 3, 0.0], "firings": [2**31 - 1, 0], "q_value": [5e-324, None],
            "successors": [SUCCESSORS, []],
        }  # fmt: skip


def test_every_value_comes_back_as_it_was(database: Database, given: dict[str, list[Any]]) -> None:
    with database.write() as session:
        insert_columns(session, Verdict, given)
    with database.read() as session:
        rows = session.scalars(select(Verdict).order_by(Verdict.feature)).all()
        found = {name: [getattr(row, name) for row in rows] for name in given}
    assert found == given


def test_none_are_none(database: Database, given: dict[str, list[Any]]) -> None:
    with database.write() as session:
        insert_columns(session, Verdict, {name: [] for name in given})
        insert_columns(session, Verdict, {})
        assert not session.scalars(select(Verdict)).all()


def test_columns_must_be_of_one_length(database: Database, given: dict[str, list[Any]]) -> None:
    with database.write() as session, pytest.raises(ValueError, match="differ in length"):
        insert_columns(session, Verdict, given | {"firings": [1]})


def test_a_column_that_the_table_has_not_is_an_error(database: Database, given: dict[str, list[Any]]) -> None:
    with database.write() as session, pytest.raises(KeyError, match="statuz"):
        insert_columns(session, Verdict, given | {"statuz": ["present", "present"]})


def test_a_row_that_may_not_be_is_refused_with_all_others(database: Database, given: dict[str, list[Any]]) -> None:
    """As by any other statement: whoever tells a conflict from a fault need not know how rows were written."""
    with pytest.raises(IntegrityError), database.write() as session:
        insert_columns(session, Verdict, given | {"feature": [3, 5]})  # there is no such feature
    with database.read() as session:
        assert not session.scalars(select(Verdict)).all()
