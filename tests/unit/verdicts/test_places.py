"""The rule of places: own codes in, words out."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import t

from featurewatch.service.verdicts.activity import compare_activity
from featurewatch.service.verdicts.places import Placement, place
from featurewatch.service.verdicts.policy import Policy
from featurewatch.service.verdicts.statuses import Places
from tests.unit.verdicts.codes import FOLDS, LENGTH, THRESHOLD, active, own_code

pytestmark = pytest.mark.filterwarnings("error")

N, BACKGROUND = 8000, 60
RATE = 0.03
"""Of the feature that something happens to: about 240 positions"""
Event = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def elsewhere(rng: np.random.Generator, before: np.ndarray, share: float) -> np.ndarray:
    """Activations like those before, `share` times as many, at other positions."""
    values, free = before[before > 0], np.flatnonzero(before == 0)
    fresh = np.zeros(len(before))
    where = rng.choice(free, round(share * len(values)), replace=False)
    fresh[where] = rng.choice(values, len(where))
    return fresh


def _broadened(rng: np.random.Generator, before: np.ndarray) -> np.ndarray:
    return before + elsewhere(rng, before, 1.5)


def _narrowed(rng: np.random.Generator, before: np.ndarray, left: float = 0.3) -> np.ndarray:
    return before * (rng.random(len(before)) < left)


def _displaced(rng: np.random.Generator, before: np.ndarray) -> np.ndarray:
    return elsewhere(rng, before, 1.0)


def _triggered(rng: np.random.Generator, before: np.ndarray) -> np.ndarray:
    """Every token of 3% of the documents."""
    documents = rng.choice(N // LENGTH, round(0.03 * N / LENGTH), replace=False)
    return np.where(np.isin(np.arange(N) // LENGTH, documents), np.median(before[before > 0]), before)


def _one_document(_: np.random.Generator, before: np.ndarray) -> np.ndarray:
    """Active at 17 positions of a document that has no other place of its."""
    document = np.flatnonzero(before.reshape(-1, LENGTH).sum(1) == 0)[3]
    now = before.copy()
    now[document * LENGTH :][:17] = 1.3
    return now


def _few(rng: np.random.Generator, before: np.ndarray) -> np.ndarray:
    """A change, of a feature with too few firings to say so."""
    before[np.flatnonzero(before)[20:]] = 0
    return elsewhere(rng, before, 1.0)


def _few_documents(rng: np.random.Generator, before: np.ndarray) -> np.ndarray:
    before[:] = 0
    before[: 3 * LENGTH] = 2.0
    return before[::-1].copy()


def _never(_: np.random.Generator, before: np.ndarray) -> np.ndarray:
    before[:] = 0
    return before.copy()


def _faint(rng: np.random.Generator, before: np.ndarray) -> np.ndarray:
    """Hardly over the threshold: which positions reach it is chance."""
    where = rng.random(N) < 0.1
    before[:] = np.where(where & (rng.random(N) < 0.4), 1.2 * THRESHOLD, 0)
    return np.where(where & (rng.random(N) < 0.4), 1.2 * THRESHOLD, 0)


EVENTS: dict[str, tuple[Event, Places]] = {
    "nothing": (lambda _, before: before.copy(), Places.SAME),
    "twice as strong": (lambda _, before: 2 * before, Places.SAME),
    "five times as strong": (lambda _, before: 5 * before, Places.SAME),
    "half as strong": (lambda _, before: 0.6 * before, Places.SAME),
    "a fifth more places": (lambda rng, before: before + elsewhere(rng, before, 0.2), Places.SAME),
    "a quarter less places": (lambda rng, before: _narrowed(rng, before, 0.75), Places.SAME),
    "broadened": (_broadened, Places.BROADENED),
    "broadened and stronger": (lambda rng, before: 2 * _broadened(rng, before), Places.BROADENED),
    "a trigger": (_triggered, Places.BROADENED),
    "a trigger in one document": (_one_document, Places.BROADENED),
    "narrowed": (_narrowed, Places.NARROWED),
    "narrowed and twice as strong": (lambda rng, before: 2 * _narrowed(rng, before), Places.INDETERMINATE),
    "a tenth left": (lambda rng, before: _narrowed(rng, before, 0.1), Places.INDETERMINATE),
    "gone": (lambda _, before: 0 * before, Places.INDETERMINATE),
    "displaced": (_displaced, Places.DISPLACED),
    "displaced and weaker": (lambda rng, before: 0.55 * _displaced(rng, before), Places.DISPLACED),
    "displaced and stronger": (lambda rng, before: 3 * _displaced(rng, before), Places.DISPLACED),
    "displaced in part": (lambda rng, before: _narrowed(rng, before) + elsewhere(rng, before, 0.7), Places.DISPLACED),
    "few firings": (_few, Places.INDETERMINATE),
    "few documents": (_few_documents, Places.INDETERMINATE),
    "never active": (_never, Places.INDETERMINATE),
    "hardly visible": (_faint, Places.INDETERMINATE),
}


def _place(events: list[Event], seed: int = 0, policy: Policy | None = None, level: float = 0.05) -> Placement:
    """Features with these events first, then features to which next to nothing happened."""
    rng = np.random.default_rng(seed)
    before = active(rng, N, [RATE] * (len(events) + BACKGROUND))
    now = before.copy()
    for column, event in enumerate(events):
        now[:, column] = event(rng, before[:, column])
    rest = now[:, len(events) :]
    rest[rng.random(rest.shape) < 0.1] = 0
    return place(compare_activity(own_code(before), own_code(now)), policy or Policy(), level)


@pytest.mark.parametrize("seed", range(3))
def test_the_table(seed: int) -> None:
    got = _place([event for event, _ in EVENTS.values()], seed)
    words = dict(zip(EVENTS, got.places, strict=False))
    assert words == {name: word for name, (_, word) in EVENTS.items()}
    assert set(got.places[len(EVENTS) :]) == {Places.SAME}


def test_only_a_trigger_is_concentrated_and_only_what_is_nearly_gone_is_emptied() -> None:
    got = _place([event for event, _ in EVENTS.values()])
    names = np.array([*EVENTS, *[""] * BACKGROUND])
    assert names[got.concentrated].tolist() == ["a trigger", "a trigger in one document"]
    assert names[got.emptied].tolist() == ["a tenth left", "gone"]


def test_figures() -> None:
    """From the definitions, with activations that are all alike."""
    before, now = np.zeros((N, 1)), np.zeros((N, 1))
    before[::20], now[::60], now[5::40] = 2.0, 3.0, 3.0  # 400, of which 134 stay, and 200 new positions
    got = place(compare_activity(own_code(before), own_code(now)), Policy(), level=0.05)
    assert got.places == [Places.DISPLACED]
    assert got.firing_rate_ratio[0] == pytest.approx(334 / 400)
    assert got.gained_share[0] == pytest.approx(200 * 3 / (400 * 2))
    assert got.lost_share[0] == pytest.approx(266 / 400)
    assert got.kept_amplitude[0] == pytest.approx(1.5)
    assert got.kept_amplitude_lo[0] == got.kept_amplitude_hi[0] == pytest.approx(1.5)
    assert got.amplitude[0] == pytest.approx(1.5)
    assert got.gained_documents[0] == 180
    assert got.places_q_value[0] < 1e-9


def test_an_interval_is_that_of_the_jackknife() -> None:
    rng = np.random.default_rng(1)
    before = active(rng, N, [RATE])
    now = _broadened(rng, before[:, 0])[:, None]
    got = place(compare_activity(own_code(before), own_code(now)), Policy(confidence=0.9), level=0.05)
    fold = np.arange(N) // LENGTH % FOLDS
    shares = [
        (now > before)[fold != k].ravel() @ now[fold != k].ravel() / before[fold != k].sum() for k in range(FOLDS)
    ]
    error = np.sqrt((FOLDS - 1) * np.var(shares))
    assert got.gained_share_hi[0] - got.gained_share[0] == pytest.approx(t.ppf(0.95, FOLDS - 1) * error, rel=1e-4)
    assert got.gained_share[0] - got.gained_share_lo[0] == pytest.approx(t.ppf(0.95, FOLDS - 1) * error, rel=1e-4)


def test_intervals_cover_what_would_be_found_in_more_text() -> None:
    """Documents differ in how often a feature is active and in how much of it is new."""
    rng, m, documents = np.random.default_rng(2), 400, 200
    often, gains, losses = (rng.gamma(4, 1 / 4, (documents, m)).repeat(LENGTH, 0) for _ in range(3))
    where = [rng.random(often.shape) for _ in range(3)]
    before = np.where(where[0] < 0.08 * often, 1 + rng.exponential(0.3, often.shape), 0)
    gained = np.where((before == 0) & (where[1] < 0.06 * gains), 1 + rng.exponential(0.3, often.shape), 0)
    now = before * (where[2] > 0.3 * losses) + gained
    got = place(compare_activity(own_code(before), own_code(now)), Policy(), level=0.05)
    lost = np.minimum(0.3 * rng.gamma(4, 1 / 4, 10**6), 1).mean()
    for name, true in (
        ("gained_share", 0.06 * (1 - 0.08) / 0.08),
        ("lost_share", lost),
        ("firing_rate_ratio", 1 - lost + 0.06 * (1 - 0.08) / 0.08),
    ):
        low, high = getattr(got, f"{name}_lo"), getattr(got, f"{name}_hi")
        assert 0.92 <= ((low <= true) & (true <= high)).mean() <= 0.98, name


def test_nothing_is_known_of_features_without_enough_firings() -> None:
    got = _place([_few, _never, _few_documents, _faint])
    for name, values in vars(got).items():
        if values.dtype == np.float32:
            assert np.isnan(values[:4]).all(), name
    assert not got.concentrated[:4].any()


def test_a_feature_that_the_baseline_lacked_is_broadened() -> None:
    """Also one that becomes active in a few documents only. There are no shares of nothing."""

    def appears(rng: np.random.Generator, before: np.ndarray) -> np.ndarray:
        now = before.copy()
        before[:] = 0
        return now

    def appears_in_few(rng: np.random.Generator, before: np.ndarray) -> np.ndarray:
        now = _triggered(rng, before) * (_triggered(np.random.default_rng(0), before) != before)
        before[:] = 0
        return now

    got = _place([appears, appears_in_few])
    assert got.places[0] == Places.BROADENED
    assert np.isnan(got.gained_share[:2]).all()


def test_false_words_are_bounded() -> None:
    """20 comparisons of 40 features with a gained share of the floor: by chance, none is over the share."""
    rng, words = np.random.default_rng(3), set()
    for _ in range(20):
        before = active(rng, N, [RATE] * 40)
        now = np.stack([column + elsewhere(rng, column, Policy().places_floor) for column in before.T], 1)
        words |= set(place(compare_activity(own_code(before), own_code(now)), Policy(), level=0.05).places)
    assert words == {Places.SAME}


def test_noise_of_a_few_firings_is_not_significant() -> None:
    """Shares over `places_share` are common among features with 30 firings whose places are partly drawn again."""
    rng = np.random.default_rng(4)
    before = active(rng, N, [0.005] * 200)
    now = np.stack([_narrowed(rng, column, 0.75) + elsewhere(rng, column, 0.25) for column in before.T], 1)
    got = place(compare_activity(own_code(before), own_code(now)), Policy(), level=0.05)
    assert not {Places.BROADENED, Places.NARROWED, Places.DISPLACED} & set(got.places)


@pytest.mark.parametrize("folds", [1, 2])
def test_few_folds(folds: int) -> None:
    """One document leaves one fold and no interval: nothing is significant."""
    rng = np.random.default_rng(5)
    before = active(rng, N, [RATE])
    now = _broadened(rng, before[:, 0])[:, None]
    got = place(compare_activity(own_code(before, folds=folds), own_code(now, folds=folds)), Policy(), level=0.05)
    assert got.gained_share[0] == pytest.approx(1.5, abs=0.1)
    if folds == 1:
        assert got.places == [Places.INDETERMINATE]


def test_no_feature_at_all() -> None:
    nothing = own_code(np.zeros((N, 0)))
    assert place(compare_activity(nothing, nothing), Policy(), level=0.05).places == []


def test_a_policy_moves_the_lines() -> None:
    def word(event: Event, **changes: float) -> Places:
        return _place([event], policy=Policy.model_validate(changes)).places[0]

    assert word(_broadened, places_share=2.0) == Places.SAME
    assert word(lambda rng, before: before + elsewhere(rng, before, 0.4), places_share=0.3, places_floor=0.1) == (
        Places.BROADENED
    )
    assert word(lambda rng, before: before + elsewhere(rng, before, 0.6), places_floor=0.58) == Places.INDETERMINATE
    assert word(_one_document) == Places.BROADENED
    assert word(_one_document, trigger_gain=100.0) == word(_one_document, trigger_firings=18) == Places.SAME
    assert word(lambda rng, before: 1.3 * _narrowed(rng, before)) == Places.INDETERMINATE
    assert word(lambda rng, before: 1.3 * _narrowed(rng, before), kept_band=1.5) == Places.NARROWED
    assert word(_few, min_firings=10) == Places.DISPLACED
    assert word(_broadened, min_firings=2000) == Places.INDETERMINATE
    assert word(_broadened, min_documents=401) == Places.INDETERMINATE
    assert word(_broadened, min_visibility=4.0) == Places.INDETERMINATE
