"""A list as one parameter, on both engines."""

import json
import random

import pytest
from sqlalchemy import bindparam, select, text

from featurewatch.service.kit.db import Database
from featurewatch.service.kit.listed import one_of
from featurewatch.service.models import Checkpoint, Feature
from tests import factories

STORED = (1, 3, 4, 40_000)


@pytest.fixture
def family_id(database: Database) -> str:
    with database.write() as session:
        family = factories.family(session)
        born = factories.checkpoint(session, family, "v1")
        for number in STORED:
            factories.feature(session, family, number, born)
        return family.id


@pytest.mark.parametrize("asked", [[], [3], [4, 1, 1, 2], list(range(50_000)), {3, 40_000}])
def test_numbers_that_are_in_the_list(database: Database, family_id: str, asked: list[int] | set[int]) -> None:
    of_family, expected = Feature.family_id == family_id, sorted(set(STORED) & set(asked))
    later = select(Feature.number).where(of_family, one_of(Feature.number, "numbers")).order_by(Feature.number)
    now = select(Feature.number).where(of_family, one_of(Feature.number, values=asked)).order_by(Feature.number)
    with database.read() as session:
        assert session.scalars(later, {"numbers": asked}).all() == expected
        assert session.scalars(now).all() == expected


def test_texts_and_several_lists_in_one_statement(database: Database, family_id: str) -> None:
    hostile = ["v1", "v2'); DROP TABLE feature; --", 'a "b", {c}\\', "né"]
    statement = (
        select(Feature.number)
        .join(Checkpoint, Checkpoint.id == Feature.born_in)
        .where(one_of(Checkpoint.name, "names"), one_of(Feature.number, "numbers"), Feature.watched == bindparam("is"))
    )
    with database.read() as session:
        assert session.scalars(statement, {"names": hostile, "numbers": [3], "is": False}).all() == [3]
        assert session.scalars(statement, {"names": hostile[1:], "numbers": [3], "is": False}).all() == []


def test_rows_are_looked_up_by_the_key(database: Database, family_id: str) -> None:
    """Not all rows of the family read, which takes longer the more there are."""
    given = {"family": family_id, "numbers": random.Random(0).sample(range(50_000), 50)}
    of_family = Feature.family_id == bindparam("family")
    statement = select(Feature.number).where(of_family, one_of(Feature.number, "numbers"))
    compiled = statement.compile(database.reader)
    with database.write() as session:
        if database.is_sqlite:
            values = (family_id, json.dumps(given["numbers"]))
            rows = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", values)
        else:  # four rows are read faster than any index, or by any of them
            session.execute(text("SET LOCAL enable_seqscan = off"))
            session.execute(text("DROP INDEX ix_feature_born, ix_feature_watched"))
            rows = session.connection().exec_driver_sql(f"EXPLAIN {compiled}", given)
        plan = "\n".join(str(row) for row in rows)
        session.rollback()
    assert ("number=?" if database.is_sqlite else "number = ANY") in plan, plan
    assert "Filter" not in plan and "SCAN feature" not in plan, plan
