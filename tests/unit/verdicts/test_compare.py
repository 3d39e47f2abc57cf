"""Verdicts written and compared on both databases: the parent gives what is stored, the first what it adds up to."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from featurewatch.service.kit.db import Database
from featurewatch.service.models import Alert, AlertRule, Checkpoint, Event, Family, Feature, Measurement, Verdict
from featurewatch.service.models import Lineage as LineageRow
from featurewatch.service.recording import verdicts as recording
from featurewatch.service.verdicts import queries, stored
from featurewatch.service.verdicts.compare import _happened, compare
from featurewatch.service.verdicts.judge import Evidence, Successor, judge
from featurewatch.service.verdicts.policy import Policy
from featurewatch.service.verdicts.statuses import GONE, Status
from featurewatch.service.verdicts.table import VerdictRow
from tests import factories

pytestmark = pytest.mark.filterwarnings("error")

FOLDS, FITTED = 20, 40
LEVELS = {
    # feature: levels in v1, v2, v3 (children of each other) and b2 (a second child of v1)
    1: (1, 0.3, 0.3, 1),  # suppressed and left so
    2: (1, 0.6, 0.4, 1),  # never much in one step, but under the band in two
    3: (1, 0, 0, 1),  # removed
    4: (1, 0, 1, 1),  # removed and back
    5: (1, 1, 3, 1),  # amplified later
    6: (1, 0, 0, 1),  # replaced by 40
    7: (1, 0.05, 0.05, 1),  # relocated: its level along the former direction
    8: (1, 0, 0, 0),  # fires too rarely
    9: (1, 1, 0.3, 0.3),  # suppressed on both branches
    10: (1, 0, 0, 0),  # its baseline is noise
    11: (1, 0.3, 1, 1),  # suppressed and back: stronger than the parent, like the first
    40: (0, 1, 1, None),  # emerged in v2
    41: (0.9, 0.8, 0.2, None),  # discovered in v2
    42: (0, 0, 1, None),  # emerged in v3
    43: (0, None, None, 1),  # emerged in b2
}
NAMES = {"v1": 0, "v2": 1, "v3": 2, "b2": 3}
PARENT = {"v2": "v1", "v3": "v2", "b2": "v1"}
BORN: dict[str, dict[int, str]] = {
    "v1": dict.fromkeys(range(FITTED), "fitted"),
    "v2": {40: "emerged", 41: "discovered"},
    "v3": {42: "emerged"},
    "b2": {43: "emerged"},
}
SUCCESSOR = Successor(40, "replaced", cofiring=0.9, strength=1.0)


def _replicates(name: str, numbers: np.ndarray) -> np.ndarray:
    """[K + 1, m] levels with a jackknife error of 0.02 in size, the same for a checkpoint whoever asks."""
    column = NAMES[name]
    levels = np.array([(LEVELS.get(number) or (1.0,) * 4)[column] for number in numbers.tolist()], dtype=float)
    rng = np.random.default_rng(column)
    noise = rng.standard_normal((FOLDS, 64))[:, numbers] * 0.02 / np.sqrt(FOLDS)
    left_out = noise - noise.mean(0)
    return levels + np.concatenate([np.zeros((1, len(numbers))), left_out])


class Lineage:
    """Records v1, v2, v3 and b2 one after the other, as their runs would."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.family = factories.family(session)
        session.add(
            AlertRule(name="any", family_id=self.family.id, enabled=True,
                      condition={"kind": "status_count", "status": "suppressed", "at_least": 1})
        )  # fmt: skip
        self.checkpoints: dict[str, Checkpoint] = {}
        self.outcomes: dict[str, recording.Outcome] = {}
        for name in NAMES:
            parent = self.checkpoints.get(PARENT.get(name, ""))
            self.checkpoints[name] = factories.checkpoint(
                session, self.family, name, parent=parent, state="registered", generation=None, quality=None
            )
            self.outcomes[name] = self._outcome(name)
            self.record(name)

    def record(self, name: str) -> dict[str, Any]:
        return recording.record(
            self.session, checkpoint_id=self.checkpoints[name].id, run_id=f"run of {name}", outcome=self.outcomes[name]
        )

    def _numbers(self, name: str) -> np.ndarray:
        inherited = self._numbers(PARENT[name]).tolist() if name in PARENT else []
        return np.array(inherited + sorted(BORN[name]), dtype=np.int64)

    def _outcome(self, name: str) -> recording.Outcome:
        numbers, now = self._numbers(name), _replicates(name, self._numbers(name))
        strength, orthogonal = now.copy(), np.full_like(now, 0.05)
        there, reference = np.ones(len(numbers), dtype=bool), now
        if name in PARENT:
            parent = self.checkpoints[PARENT[name]]
            gone = recording.gone(self.session, parent.id)
            there = ~np.isin(numbers, gone)
            reference = np.where(there, _replicates(PARENT[name], numbers), _replicates("v1", numbers))
        moved = (numbers == 7) & (name == "v2")
        strength[:, (numbers == 7) & (name in ("v2", "v3"))] += 0.95
        orthogonal[:, moved] = 0.98
        strength[:, numbers == 10] = 0.1 + np.random.default_rng(9).standard_normal((FOLDS + 1, 1)) * 0.1
        if name == "v3":  # v2's row has the new direction of 7 already
            now[:, numbers == 7] += 0.95
            reference[:, numbers == 7] += 0.95
        with np.errstate(divide="ignore", invalid="ignore"):
            projection, ratio = now / reference, strength / np.where(moved, 1.0, reference)
        projection[~np.isfinite(projection)] = ratio[~np.isfinite(ratio)] = np.nan
        quiet = np.where(numbers == 8, 3, 500)
        evidence = Evidence(
            projection=projection.astype(np.float32),
            strength_ratio=ratio.astype(np.float32),
            orthogonal=orthogonal.astype(np.float32),
            firings=quiet,
            documents=np.minimum(quiet, 60),
            readability=np.full(len(numbers), 0.8, dtype=np.float32),
            readability_before=np.full(len(numbers), 0.8, dtype=np.float32),
            baseline_z=np.where(numbers == 10, 0.5, 50).astype(np.float32),
            there_before=there,
            born_here=np.array([BORN[name].get(number) == "emerged" for number in numbers.tolist()]),
        )
        if name == "v2":
            evidence.successors = {6: [SUCCESSOR]}
        judgement = judge(evidence, Policy())
        return recording.Outcome(
            generation=1,
            positions={"digest": "p", "count": 1000, "artifact": "positions", "documents": None},
            first_number=min(BORN[name]),
            numbers=numbers,
            origins=BORN[name],
            top_tokens=[["a"] for _ in BORN[name]],
            logits=[{} for _ in BORN[name]],
            code=f"code of {name}",
            examples=f"examples of {name}",
            n_positions=1000,
            sources=[recording.SourceOutcome("resid_post.12", 8, {"fvu": 0.2}, "dictionary", "activations")],
            quality={"fvu": 0.2, "statuses": dict(Counter(str(s) for s in judgement.status))},
            evidence=evidence,
            judgement=judgement,
            strength=strength.astype(np.float32),
            cosine=np.ones(len(numbers), dtype=np.float32),
            per_hook={"resid_post.12": {"readability": evidence.readability}},
        )

    def compare(self, name: str, baseline: str) -> dict[int, VerdictRow]:
        rows = compare(self.session, self.family, self.checkpoints[name], self.checkpoints[baseline]).rows()
        assert [row.feature for row in rows] == sorted(row.feature for row in rows)
        return {row.feature: row for row in rows}

    def stored(self, name: str) -> dict[int, Verdict]:
        found = self.session.scalars(select(Verdict).where(Verdict.checkpoint_id == self.checkpoints[name].id))
        return {verdict.feature: verdict for verdict in found}


def _statuses(rows: dict[int, Any]) -> dict[int, str]:
    """Without those to which nothing ever happens."""
    return {number: str(row.status) for number, row in rows.items() if number in LEVELS}


def test_stored_and_compared(database: Database) -> None:
    """One lineage on each engine: to write it is most of the cost."""
    with database.write() as session:
        lineage = Lineage(session)
        _check_stored(lineage)
        _check_against_parent(lineage)
        _check_against_first(lineage)
        _check_branches(lineage)
        _check_backwards_and_itself(lineage)
        _check_measurements(lineage)
        _check_again(lineage)


def _check_stored(lineage: Lineage) -> None:
    assert _statuses(lineage.stored("v2")) == {
        1: "suppressed", 2: "present", 3: "absent", 4: "absent", 5: "present", 6: "replaced", 7: "relocated",
        8: "indeterminate", 9: "present", 10: "indeterminate", 11: "suppressed", 40: "emerged", 41: "present",
    }  # fmt: skip
    stored = lineage.stored("v3")
    assert _statuses(stored) == {
        1: "present", 2: "present", 3: "absent", 4: "emerged", 5: "amplified", 6: "absent", 7: "present",
        8: "indeterminate", 9: "suppressed", 10: "indeterminate", 11: "amplified", 40: "present", 41: "suppressed",
        42: "emerged",
    }  # fmt: skip
    assert stored[6].previous_status == "replaced"
    assert stored[42].previous_status is None
    assert lineage.stored("v2")[6].successors == [{"id": "F40", "kind": "replaced", "cofiring": 0.9}]
    assert stored[9].projection_ratio == pytest.approx(0.3, rel=1e-3)
    assert stored[9].firing_rate == 0.5


def _check_against_parent(lineage: Lineage) -> None:
    for name, parent in PARENT.items():
        stored, compared = lineage.stored(name), lineage.compare(name, parent)
        assert _statuses(compared) == _statuses(stored)
        for number in stored:
            a, b = stored[number], compared[number]
            assert (a.successors, a.previous_status, a.firings) == (b.successors, b.previous_status, b.firings)
            for figure in ("projection_ratio", "projection_ratio_lo", "projection_ratio_hi", "change", "readability"):
                assert getattr(b, figure) == pytest.approx(getattr(a, figure), abs=1e-4), (name, number, figure)


def _check_against_first(lineage: Lineage) -> None:
    compared = lineage.compare("v3", "v1")
    assert _statuses(compared) == {
        1: "suppressed", 2: "suppressed", 3: "absent", 4: "present", 5: "amplified", 6: "replaced", 7: "relocated",
        8: "indeterminate", 9: "suppressed", 10: "indeterminate", 11: "present", 40: "emerged", 41: "suppressed",
        42: "emerged",
    }  # fmt: skip
    assert compared[2].projection_ratio == pytest.approx(0.4, abs=1e-3)
    assert compared[41].projection_ratio == pytest.approx(0.2 / 0.9, abs=1e-3)
    assert compared[6].successors[0]["id"] == "F40"
    assert compared[7].change >= lineage.stored("v2")[7].change > 0, "it is a change, whatever the new level says"
    assert compared[1].previous_status == "present"
    assert {row.status for number, row in compared.items() if number not in LEVELS} == {"present"}


def _check_branches(lineage: Lineage) -> None:
    """b2 and v3 have parted at v1: what happened on one side is a difference, what happened on both is none."""
    compared = lineage.compare("b2", "v3")
    assert _statuses(compared) == {
        1: "amplified", 2: "amplified", 3: "emerged", 4: "present", 5: "suppressed", 6: "emerged", 7: "present",
        8: "indeterminate", 9: "present", 10: "indeterminate", 11: "present", 43: "emerged",
    }  # fmt: skip
    back = _statuses(lineage.compare("v3", "b2"))
    assert {number: back[number] for number in (1, 3, 6, 7, 9, 40, 42)} == {
        1: "suppressed", 3: "absent", 6: "replaced", 7: "relocated", 9: "present", 40: "emerged", 42: "emerged",
    }  # fmt: skip
    assert back[41] == "indeterminate"  # nobody has looked for it there
    assert 43 not in back


def _check_backwards_and_itself(lineage: Lineage) -> None:
    compared = lineage.compare("v1", "v3")
    assert set(compared) == set(range(FITTED))
    wanted = {1: "amplified", 3: "emerged", 4: "present", 5: "suppressed", 9: "amplified"}
    assert {number: str(compared[number].status) for number in wanted} == wanted
    # v3 writes where 7 was relocated to in v2: seen from there it is where it always was.
    assert _statuses(lineage.compare("v2", "v3"))[7] == "present"
    for name in ("v1", "v2", "v3"):
        itself = {str(row.status) for row in lineage.compare(name, name).values()}
        assert itself <= {"present", "indeterminate", "absent"}
        assert all(row.change == 0 for row in lineage.compare(name, name).values())


def _check_measurements(lineage: Lineage) -> None:
    """Levels are chained; a gone feature is compared with where it was last, a relocated one with where it is now."""
    for name in ("v2", "v3"):
        level, reference = (
            queries.measurement(lineage.session, lineage.checkpoints[name].id, metric)
            for metric in ("level", "reference_level")
        )
        assert level is not None
        assert reference is not None
        assert level.shape == (FOLDS + 1, len(lineage.outcomes[name].numbers))
        wanted = [LEVELS.get(number, (1, 1, 1, 1))[NAMES[name]] for number in range(FITTED)]
        solid = [number for number in range(FITTED) if number not in (7, 8, 10)]
        np.testing.assert_allclose(level[0][solid], np.array(wanted)[solid], atol=2e-3)
        np.testing.assert_allclose(reference[0, [3, 6]], 1.0, atol=2e-3)
        assert level[0, 40] == pytest.approx(1.0, abs=1e-2)
        size = lineage.outcomes["v2"].judgement.strength_size
        assert reference[0, 7] == pytest.approx(1.0 / size, abs=1e-2)


def _check_again(lineage: Lineage) -> None:
    """Recording the same verdicts again changes no row and sends no second announcement."""
    session = lineage.session

    def counts() -> dict[str, int]:
        session.flush()
        tables = (Verdict, Measurement, Event, Feature, Alert)
        return {table.__name__: session.scalar(select(func.count()).select_from(table)) or 0 for table in tables}

    before, events = counts(), set(session.scalars(select(Event.id)))
    assert before["Event"] > 0
    assert before["Alert"] > 0
    verdicts = {name: _statuses(lineage.stored(name)) for name in NAMES}
    n_features = lineage.family.n_features
    for name in ("v1", "v3", "b2"):
        session.expunge_all()
        lineage.family = session.get_one(Family, lineage.family.id)
        lineage.checkpoints = {n: session.get_one(Checkpoint, c.id) for n, c in lineage.checkpoints.items()}
        lineage.record(name)
    assert counts() == before
    assert set(session.scalars(select(Event.id))) == events
    assert {name: _statuses(lineage.stored(name)) for name in NAMES} == verdicts
    assert lineage.family.n_features == n_features


def test_a_re_fit_is_recorded_once(database: Database) -> None:
    """v3 again as a new generation without 12 and 13; 13 went into 14, and people watch it."""
    with database.write() as session:
        lineage = Lineage(session)
        before = lineage.compare("v3", "v1")
        session.get_one(Feature, (lineage.family.id, 13)).watched = True
        outcome = lineage.outcomes["v3"]
        keep = ~np.isin(outcome.numbers, (12, 13))
        evidence = replace(outcome.evidence, **{
            name: value[..., keep] for name, value in vars(outcome.evidence).items() if isinstance(value, np.ndarray)
        })  # fmt: skip
        lineage.outcomes["v3"] = replace(
            outcome,
            generation=2,
            numbers=outcome.numbers[keep],
            evidence=evidence,
            judgement=judge(evidence, Policy()),
            strength=outcome.strength[:, keep],
            cosine=outcome.cosine[keep],
            per_hook={"resid_post.12": {"readability": evidence.readability}},
            lineage=[
                *(recording.Link(number, number, "carried", 0.9) for number in outcome.numbers[keep].tolist()),
                recording.Link(12, None, "retired", 0.1),
                recording.Link(13, 14, "merged", 0.5),
            ],
        )
        for _ in range(2):
            result = lineage.record("v3")
            assert (result["ended_features"], result["ended_watched"]) == (2, ["F13"])
            session.flush()
            kinds = Counter(session.scalars(select(LineageRow.kind)))
            assert kinds == {"carried": keep.sum(), "retired": 1, "merged": 1}
            retired = select(Feature.number).where(Feature.retired_in == 2).order_by(Feature.number)
            assert list(session.scalars(retired)) == [12, 13]
        assert lineage.family.generation == 2
        # Columns are not numbers any more, and every other feature is compared as before.
        after = lineage.compare("v3", "v1")
        assert set(before) - set(after) == {12, 13}
        for number, row in after.items():
            assert (row.status, row.successors) == (before[number].status, before[number].successors)
            assert row.projection_ratio == pytest.approx(before[number].projection_ratio, abs=1e-3)
        assert {row.status for number, row in lineage.compare("v1", "v3").items() if number in (12, 13)} == {
            "indeterminate"
        }


def test_numbers_are_not_given_out_twice(database: Database) -> None:
    """A run that counted from a state of the family that is no more must not write over another one's features."""
    with database.write() as session:
        lineage = Lineage(session)
        stray = factories.checkpoint(session, lineage.family, "stray", parent=lineage.checkpoints["v1"])
        with pytest.raises(RuntimeError, match="numbers new ones from 43"):
            recording.record(session, checkpoint_id=stray.id, run_id="r", outcome=lineage.outcomes["b2"])


@pytest.mark.parametrize("order", [(1, 2), (2, 1)], ids=str)
def test_of_two_successions_on_the_way_the_later_one_counts(database: Database, order: tuple[int, int]) -> None:
    """A feature that was replaced, came back and was replaced again; whatever order the database answers in."""
    with database.write() as session:
        family = factories.family(session)
        chain = [factories.checkpoint(session, family, "v0")]
        for number in (1, 2):
            chain.append(factories.checkpoint(session, family, f"v{number}", parent=chain[-1]))
        feature = factories.feature(session, family, 7, chain[0])
        for number in order:
            factories.verdict(session, chain[number], feature, "replaced", successors=[{"id": f"F{number}"}])
        found = _happened([stored.course(session, family.id, one.id, 0, keep=False) for one in chain[:0:-1]])
        assert found[7, "replaced"].successors == [{"id": "F2"}]


def test_gone_are_the_absent_and_the_replaced(database: Database) -> None:
    with database.write() as session:
        lineage = Lineage(session)
        assert sorted(recording.gone(session, lineage.checkpoints["v2"].id)) == [3, 4, 6]
        assert sorted(recording.gone(session, lineage.checkpoints["v3"].id)) == [3, 6]
    assert {Status.ABSENT, Status.REPLACED} == GONE
