"""Statuses and places together: what is active elsewhere, or in fewer places, was not suppressed and is not absent."""

from typing import NamedTuple

import numpy as np
import pytest

from featurewatch.service.verdicts.activity import compare_activity
from featurewatch.service.verdicts.judge import NO_PLACES, Judgement, Successor, judge
from featurewatch.service.verdicts.policy import Policy
from featurewatch.service.verdicts.statuses import PLACES_BY_CODE, Places, Status
from tests.unit.verdicts.codes import LENGTH, active, own_code
from tests.unit.verdicts.test_judge import BACKGROUND, ONE, Case, _evidence
from tests.unit.verdicts.test_places import EVENTS, RATE, Event, N, elsewhere

pytestmark = pytest.mark.filterwarnings("error")


class Joint(NamedTuple):
    case: Case
    event: str
    status: Status
    places: Places | None


def _faintly_displaced(rng: np.random.Generator, before: np.ndarray) -> np.ndarray:
    before *= 3
    return 0.48 * EVENTS["displaced"][0](rng, before)


def _rarely_displaced(rng: np.random.Generator, before: np.ndarray) -> np.ndarray:
    before[np.flatnonzero(before)[60:]] = 0
    return EVENTS["displaced"][0](rng, before)


def _in_few_documents(_: np.random.Generator, before: np.ndarray) -> np.ndarray:
    """0.3 of its activation, in three documents in which it was not: whether there are more is chance."""
    now = np.zeros_like(before)
    free = np.flatnonzero(before.reshape(-1, LENGTH).sum(1) == 0)[[3, 4, 5]]
    now.reshape(-1, LENGTH)[free, :6] = 0.3 * before.sum() / 18
    return now


MORE: dict[str, Event] = {name: event for name, (event, _) in EVENTS.items()} | {
    "displaced, weaker": _faintly_displaced,
    "rarely displaced": _rarely_displaced,
    "gone, but for a few documents": _in_few_documents,
    "broadened by .53": lambda rng, before: before + elsewhere(rng, before, 0.53),
}
TABLE = {
    "unchanged": Joint(Case(), "nothing", Status.PRESENT, Places.SAME),
    "amplified in place": Joint(Case(ratio=3.0), "five times as strong", Status.AMPLIFIED, Places.SAME),
    "suppressed in place": Joint(Case(ratio=0.3), "half as strong", Status.SUPPRESSED, Places.SAME),
    "present in more places": Joint(Case(), "broadened", Status.PRESENT, Places.BROADENED),
    "present, with a trigger": Joint(Case(), "a trigger", Status.PRESENT, Places.BROADENED),
    "amplified in more places": Joint(
        Case(ratio=3.0), "broadened and stronger", Status.AMPLIFIED, Places.BROADENED
    ),
    "suppressed by the ratio, but narrowed": Joint(Case(ratio=0.3), "narrowed", Status.PRESENT, Places.NARROWED),
    "unsure by the ratio, but narrowed": Joint(
        Case(ratio=0.45, error=0.05), "narrowed", Status.PRESENT, Places.NARROWED
    ),
    "suppressed, in fewer places": Joint(
        Case(ratio=0.3), "narrowed and twice as strong", Status.SUPPRESSED, Places.INDETERMINATE
    ),
    "absent by the ratio, but displaced": Joint(Case(ratio=0.02), "displaced", Status.PRESENT, Places.DISPLACED),
    "relocated by the ratio, but displaced": Joint(
        Case(ratio=0.1, orthogonal=0.95), "displaced", Status.PRESENT, Places.DISPLACED
    ),
    "displaced and weaker": Joint(Case(ratio=0.02), "displaced, weaker", Status.SUPPRESSED, Places.DISPLACED),
    "displaced and stronger": Joint(Case(ratio=0.02), "displaced and stronger", Status.AMPLIFIED, Places.DISPLACED),
    "absent": Joint(Case(ratio=0.02), "gone", Status.ABSENT, None),
    "absent, its neighbours active at a tenth": Joint(Case(ratio=0.02), "a tenth left", Status.ABSENT, None),
    "absent by the ratio, but active where it was": Joint(
        Case(ratio=0.02), "nothing", Status.SUPPRESSED, Places.SAME
    ),
    "absent by the ratio, but active in more places": Joint(
        Case(ratio=0.02), "broadened", Status.SUPPRESSED, Places.BROADENED
    ),
    "relocated": Joint(Case(ratio=0.1, orthogonal=0.95), "nothing", Status.RELOCATED, None),
    "gone before": Joint(Case(ratio=0.02, there_before=False), "never active", Status.ABSENT, None),
    "gone before, back": Joint(Case(ratio=0.9, there_before=False), "broadened", Status.EMERGED, None),
    "gone before, active elsewhere": Joint(Case(ratio=0.02, there_before=False), "displaced", Status.ABSENT, None),
    "born here": Joint(Case(born=True, there_before=False), "broadened", Status.EMERGED, None),
    "few firings": Joint(Case(firings=20), "few firings", Status.INDETERMINATE, Places.INDETERMINATE),
    "never active": Joint(Case(firings=0, documents=0), "never active", Status.INDETERMINATE, Places.INDETERMINATE),
}  # fmt: skip


def _judge(rows: list[Joint], successors: dict[int, list[Successor]] | None = None, comparison: int = 1) -> Judgement:
    rng = np.random.default_rng(0)
    before = active(rng, N, [RATE] * (len(rows) + BACKGROUND))
    now = before.copy()
    for column, row in enumerate(rows):
        now[:, column] = MORE[row.event](rng, before[:, column])
    evidence = _evidence([row.case for row in rows], successors)
    evidence.activity = compare_activity(own_code(before), own_code(now))
    evidence.comparison = comparison
    return judge(evidence, Policy())


def _words(got: Judgement) -> list[tuple[Status, Places | None]]:
    places = [None if code == NO_PLACES else PLACES_BY_CODE[code] for code in got.places.tolist()]
    return list(zip(got.status, places, strict=True))


@pytest.mark.parametrize("name", TABLE)
def test_table(name: str) -> None:
    row = TABLE[name]
    got = _words(_judge([row]))
    assert got[0] == (row.status, row.places)
    assert set(got[1:]) == {(Status.PRESENT, Places.SAME)}


def test_the_whole_table_at_once() -> None:
    rows = list(TABLE.values())
    assert _words(_judge(rows))[: len(rows)] == [(row.status, row.places) for row in rows]


def test_a_displaced_feature_was_not_replaced() -> None:
    row = TABLE["absent by the ratio, but displaced"]
    assert _words(_judge([row], successors={0: ONE}))[0] == (Status.PRESENT, Places.DISPLACED)
    assert _words(_judge([row._replace(event="gone")], successors={0: ONE}))[0] == (Status.REPLACED, None)


def test_a_corrected_status_has_no_change() -> None:
    names = ["suppressed by the ratio, but narrowed", "absent by the ratio, but displaced", "displaced and weaker"]
    change = _judge([TABLE[name] for name in names]).change
    assert change[:2].tolist() == [0.0, 0.0]
    assert change[2] > 0


def test_levels_of_a_lineage_are_those_of_places() -> None:
    """The hundredth comparison spends little: what is clear stays, and what is faint is not said any more."""
    rows = [TABLE["present in more places"], TABLE["present in more places"]._replace(event="broadened by .53")]
    for comparison, faint in ((1, Places.BROADENED), (100, Places.INDETERMINATE)):
        assert [word for _, word in _words(_judge(rows, comparison=comparison))[:2]] == [Places.BROADENED, faint]


def test_how_strict_the_level_is_does_not_make_a_displaced_feature_absent() -> None:
    """Few firings far along a lineage: the loss is significant, the gain is not. Its interval is enough."""
    rows = [Joint(Case(ratio=0.02), "rarely displaced", Status.PRESENT, Places.DISPLACED)] * 8
    assert set(_words(_judge(rows, comparison=20))[: len(rows)]) == {(Status.PRESENT, Places.DISPLACED)}


def test_what_is_active_elsewhere_in_one_place_or_two_is_not_absent() -> None:
    row = Joint(Case(ratio=0.02), "gone, but for a few documents", Status.INDETERMINATE, Places.INDETERMINATE)
    assert _words(_judge([row]))[0] == (row.status, row.places)


def test_without_own_codes_there_are_no_places() -> None:
    got = judge(_evidence([Case(ratio=0.3)]), Policy())
    assert got.placement is None
    assert set(got.places.tolist()) == {NO_PLACES}
    assert got.status[0] == Status.SUPPRESSED
