"""The past of discovered features, written into ancestors on both databases."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from featurewatch.service.kit.db import Base, Database
from featurewatch.service.models import Alert, Event, Verdict
from featurewatch.service.verdicts import queries
from featurewatch.service.verdicts.past import Discovered, Past, record
from tests import factories
from tests.unit.verdicts.test_compare import FOLDS, Lineage

pytestmark = pytest.mark.filterwarnings("error")

NUMBERS = np.array([50, 51, 52, 53])
"""One that is suppressed in v3, one that emerged in v2, one that is relocated in v2, and one that never changed."""
RATIOS = {"v1": (1, 1, 1, 1), "v2": (1, 1, 0.05, 1), "v3": (0.3, 1, 1, 1)}
STRENGTHS = {"v1": (1, 0, 1, 1), "v2": (1, 1, 1.1, 1), "v3": (0.3, 1, 1.1, 1)}


def replicates(values: tuple[float, ...], seed: int) -> np.ndarray:
    """[K + 1, j] with a jackknife error of 0.02."""
    noise = np.random.default_rng(seed).standard_normal((FOLDS, len(values))) * 0.02 / np.sqrt(FOLDS)
    return np.concatenate([[values], np.array(values) + noise - noise.mean(0)]).astype(np.float32)


def past(lineage: Lineage, name: str, before: str | None) -> Past:
    ratios = [b / a if a else np.nan for a, b in zip(STRENGTHS[before or name], STRENGTHS[name], strict=True)]
    projection = RATIOS[name] if before else (1.0,) * len(NUMBERS)
    return Past(
        checkpoint_id=lineage.checkpoints[name].id,
        there=np.array(STRENGTHS[name]) > 0,
        projection=replicates(projection, 1) if before else np.ones((FOLDS + 1, len(NUMBERS)), dtype=np.float32),
        strength_ratio=replicates(tuple(ratios), 2),
        strength=replicates(STRENGTHS[name], 3),
        cosine=np.full(len(NUMBERS), 0.9, dtype=np.float32),
        readability=np.full(len(NUMBERS), 0.8, dtype=np.float32),
        per_hook={"resid_post.12": {"readability": np.full(len(NUMBERS), 0.7, dtype=np.float32)}},
    )


def discovered(lineage: Lineage, names: list[str]) -> Discovered:
    """The past of the features in some of the checkpoints, found in a child of v3."""
    earlier = [None, *names[:-1]]
    return Discovered(
        numbers=NUMBERS,
        firings=np.full(len(NUMBERS), 500),
        documents=np.full(len(NUMBERS), 60),
        n_positions=1000,
        ancestors=[past(lineage, name, before) for name, before in zip(names, earlier, strict=True)],
    )


def lineage_of(session: Session) -> Lineage:
    lineage = Lineage(session)
    found_in = factories.checkpoint(session, lineage.family, "v4", parent=lineage.checkpoints["v3"])
    for number in NUMBERS.tolist():
        factories.feature(session, lineage.family, number, found_in, origin="discovered")
    return lineage


def statuses(rows: dict[int, Any]) -> list[str | None]:
    return [str(rows[number].status) if number in rows else None for number in NUMBERS.tolist()]


def level(lineage: Lineage, name: str, metric: str = "level") -> np.ndarray:
    found = queries.measurement(lineage.session, lineage.checkpoints[name].id, metric)
    assert found is not None
    return found[0, NUMBERS]


def others(session: Session) -> list[Any]:
    """All verdicts of other features, and what was raised."""
    rows = session.execute(select(Base.metadata.tables["verdict"]).where(Verdict.feature.not_in(NUMBERS.tolist())))
    return [
        *sorted(map(repr, rows)),
        *(session.scalar(select(func.count()).select_from(one)) for one in (Alert, Event)),
    ]


def test_the_ancestors_tell_of_it(database: Database) -> None:
    with database.write() as session:
        lineage = lineage_of(session)
        before = others(session)
        for _ in range(2):  # doing it again writes the same
            record(session, lineage.family, discovered(lineage, ["v1", "v2", "v3"]))
            session.flush()
            assert others(session) == before
            assert statuses(lineage.stored("v1")) == ["present", None, "present", "present"]
            assert statuses(lineage.stored("v2")) == ["present", "emerged", "relocated", "present"]
            assert statuses(lineage.stored("v3")) == ["suppressed", "present", "present", "present"]
        stored = lineage.stored("v3")
        assert [stored[number].previous_status for number in (50, 52)] == ["present", "relocated"]
        assert lineage.stored("v1")[50].previous_status is None
        assert stored[50].projection_ratio == pytest.approx(0.3, abs=1e-3)
        assert stored[50].firing_rate == 0.5
        assert stored[50].direction_cosine == pytest.approx(0.9)
        assert lineage.stored("v2")[51].projection_ratio is None
        # The levels go on from the oldest that has the feature, of a relocated one along its new direction.
        np.testing.assert_allclose(level(lineage, "v1"), [1, np.nan, 1, 1], atol=1e-3)
        np.testing.assert_allclose(level(lineage, "v2"), [1, 1, 0.05, 1], atol=1e-3)
        np.testing.assert_allclose(level(lineage, "v2", "reference_level"), [1, 1, 1.1, 1], atol=1e-3)
        np.testing.assert_allclose(level(lineage, "v3"), [0.3, 1, 1.1, 1], atol=1e-3)
        at_hook = queries.measurement(session, lineage.checkpoints["v2"].id, "readability", "resid_post.12")
        assert at_hook is not None
        np.testing.assert_allclose(at_hook[NUMBERS], 0.7)
        assert np.isnan(at_hook[NUMBERS[0] - 1]), "no feature of this checkpoint"
        # And any two of them can be compared, as for features that were known from the start.
        assert statuses(lineage.compare("v3", "v1")) == ["suppressed", "emerged", "relocated", "present"]
        assert statuses(lineage.compare("v3", "v2")) == statuses(stored)


def test_one_that_emerged_is_told_from_one_that_could_not_be_looked_for(database: Database) -> None:
    """Feature 51 alone: where v1 was measured it emerged in v2; where v1's activations are gone nobody can say."""
    with database.write() as session:
        lineage = lineage_of(session)
        for names, said in ((["v1", "v2"], "emerged"), (["v2"], "indeterminate")):
            found = discovered(lineage, names)
            only = NUMBERS == 51
            ancestors = [replace(one, there=one.there & only) for one in found.ancestors]
            record(session, lineage.family, replace(found, ancestors=ancestors))
            session.flush()
            assert statuses(lineage.stored("v1")) == [None] * 4
            assert statuses(lineage.stored("v2")) == [None, said, None, None]


def test_what_cannot_be_measured_is_indeterminate(database: Database) -> None:
    """The activations of v2 are gone: v3 has nothing to be judged against, but its level is known from v1."""
    with database.write() as session:
        lineage = lineage_of(session)
        record(session, lineage.family, discovered(lineage, ["v1", "v3"]))
        session.flush()
        assert statuses(lineage.stored("v2")) == [None] * 4
        assert statuses(lineage.stored("v3")) == ["indeterminate"] * 4
        row = lineage.stored("v3")[50]
        assert (row.projection_ratio, row.previous_status, row.direction_cosine) == (None, None, None)
        assert row.strength == pytest.approx(0.3)
        assert level(lineage, "v3")[0] == pytest.approx(0.3, abs=1e-3)
        assert statuses(lineage.compare("v3", "v1"))[0] == "suppressed"
