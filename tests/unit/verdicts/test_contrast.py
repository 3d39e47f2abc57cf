"""Contrast sets: which features separate the classes, how sure that is, and how much of the difference they write."""

import numpy as np
import pytest
from scipy.stats import ortho_group

from featurewatch.service.verdicts.significance import benjamini_hochberg
from featurewatch.workers.verdicts.contrast import (
    Rows,
    auroc,
    choose,
    halves,
    interval,
    random_sets,
    strengths,
    take,
    weights,
)


def rows_of(n: int, *, paired: bool = False) -> Rows:
    """n rows of each class, in pairs or each by itself."""
    positive = np.arange(2 * n) % 2 == 0
    return Rows(positive, (np.arange(2 * n) // 2 if paired else np.arange(2 * n)).astype(np.int64))


def features(rng: np.random.Generator, rows: Rows, m: int, real: int, shift: float = 1.5) -> np.ndarray:
    """Sparse non-negative features [r, m], of which the first `real` are larger in the positive class."""
    values = rng.standard_normal((len(rows.positive), m)) - 0.8
    values[:, :real] += np.outer(rows.positive, np.full(real, shift))
    return np.maximum(values, 0)


def chosen(values: np.ndarray, rows: Rows, **options: object) -> list[int]:
    settings = {"most": 16, "fdr": 0.05, "least": 0.6, "seed": 0} | options
    return choose(lambda c: values[:, c], values.shape[1], rows, to_q=benjamini_hochberg, **settings).columns.tolist()


@pytest.mark.parametrize("paired", [False, True])
def test_those_that_separate_are_chosen(paired: bool) -> None:
    rows = rows_of(60, paired=paired)
    values = features(np.random.default_rng(0), rows, 500, 6)
    found = chosen(values, rows)
    assert set(found) >= set(range(6))
    assert len(found) <= 8
    assert len(chosen(values, rows, most=3)) == 3


@pytest.mark.parametrize("paired", [False, True])
def test_where_none_separates_hardly_ever_is_one_chosen(paired: bool) -> None:
    """At an FDR of 5% one set in twenty may give any."""
    rows, alarms = rows_of(30, paired=paired), 0
    for seed in range(60):
        alarms += bool(chosen(features(np.random.default_rng(seed), rows, 200, 0), rows, seed=seed))
    assert alarms <= 8  # binomial(60, 0.05): 99.5%


def test_pairs_see_what_their_texts_hide() -> None:
    """What varies between pairs far more than inside them is seen by labels dealt inside pairs alone."""
    rng, rows = np.random.default_rng(1), rows_of(40, paired=True)
    values = 50 + 20 * np.repeat(rng.standard_normal((40, 100)), 2, axis=0)
    values[:, 0] += rows.positive * 6 + 0.5 * rng.standard_normal(80)
    loose = rows._replace(group=np.arange(80))
    assert chosen(values, rows, least=0.5) == [0]
    assert chosen(values, loose, least=0.5) == []


def test_a_feature_that_never_fires_is_not_judged() -> None:
    rows = rows_of(30)
    values = features(np.random.default_rng(0), rows, 50, 2)
    values[:, 10] = 0.0
    values[:, 11] = 3.0
    assert not {10, 11} & set(chosen(values, rows, least=0.5))


def test_halves_keep_groups_together_and_classes_even() -> None:
    positive = np.arange(200) % 2 == 0
    for group in (np.arange(200) // 2, np.arange(200), np.arange(200) // 10):
        judged = halves(positive, group, 3)
        assert judged.sum() == 100
        assert all(len(set(judged[group == g])) == 1 for g in np.unique(group))
        assert abs(int(positive[judged].sum()) - 50) <= 5
    assert (halves(positive, np.arange(200), 3) == halves(positive, np.arange(200), 3)).all()
    assert (halves(positive, np.arange(200), 3) != halves(positive, np.arange(200), 4)).any()


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    rng, rows = np.random.default_rng(2), rows_of(25)
    score = np.round(rng.standard_normal(50) + rows.positive, 1)
    above, below = score[rows.positive], score[~rows.positive]
    slow = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a in above for b in below])
    got = auroc(score, rows)
    assert got.value == pytest.approx(slow)
    assert got.low < slow < got.high


def test_the_interval_of_an_auroc_holds_the_truth() -> None:
    """Two normal classes one standard deviation apart: Phi(1 / sqrt 2) = 0.760."""
    rows, held = rows_of(40), 0
    for seed in range(150):
        score = np.random.default_rng(seed).standard_normal(80) + rows.positive
        got = auroc(score, rows, seed)
        held += got.low <= 0.7602 <= got.high
    assert 134 <= held <= 149


def test_perfect_separation_is_no_certainty() -> None:
    rows = rows_of(20)
    got = auroc(rows.positive.astype(float), rows)
    assert (got.value, got.high) == (1.0, 1.0)
    assert got.low == pytest.approx(0.025 ** (1 / 20))


def test_random_sets_separate_as_far_as_everything_does() -> None:
    rows = rows_of(100)
    select, judge = (
        take(rows.positive, rows.group, rows.group < 100),
        take(rows.positive, rows.group, rows.group >= 100),
    )
    for real, low, high in ((0, 0.4, 0.6), (300, 0.85, 1.0)):
        values = features(np.random.default_rng(5), rows, 300, real)
        found = random_sets(lambda c, v=values: (v[:100][:, c], v[100:][:, c]), np.arange(300), 8, select, judge, 0)
        assert low < float(np.median(found)) < high


def products(values: np.ndarray, rows: Rows, d_c: np.ndarray, d_b: np.ndarray, scale: float = 1.0) -> np.ndarray:
    got = strengths(values * scale, values, (d_c @ d_c.T, d_b @ d_b.T, d_c @ d_b.T), rows)
    return np.stack(got)


@pytest.mark.parametrize("paired", [False, True])
def test_strengths_do_not_take_noise_for_a_difference(paired: bool) -> None:
    """Where the classes do not differ the product is zero on average, not the noise's square."""
    rows, d = rows_of(12, paired=paired), np.random.default_rng(0).standard_normal((5, 9))
    found = [products(np.random.default_rng(s).standard_normal((24, 5)), rows, d, d)[0, 0] for s in range(400)]
    noise = np.trace(d @ d.T) * 2 / 12  # what a plain product would have on average
    assert abs(np.mean(found)) < 0.2 * noise


def test_a_turned_basis_changes_no_strength_and_a_weaker_writer_does() -> None:
    rng, rows = np.random.default_rng(3), rows_of(80)
    values, d = features(rng, rows, 6, 6), rng.standard_normal((6, 20))
    turned = d @ ortho_group.rvs(20, random_state=0)
    now, before, both = products(values, rows, turned, d)
    assert now == pytest.approx(before)
    assert abs(both[0]) < 0.5 * before[0]
    now, before, both = products(values, rows, 0.3 * d, d)
    assert np.sqrt(now / before) == pytest.approx(np.full(21, 0.3))
    assert both / before == pytest.approx(np.full(21, 0.3))


def test_the_interval_of_a_ratio_holds_the_truth() -> None:
    """Two checkpoints read the same rows with noise of their own; one writes 0.6 of what the other does."""
    held, d = 0, np.random.default_rng(0).standard_normal((4, 10))
    for seed in range(150):
        rng, rows = np.random.default_rng(seed), rows_of(50)
        values = features(rng, rows, 4, 4, shift=1.0)
        other = values + 0.5 * rng.standard_normal(values.shape)
        got = strengths(other, values, (0.36 * d @ d.T, d @ d.T, 0.6 * d @ d.T), rows)
        estimate = interval(np.sqrt(np.maximum(got.now, 0) / got.before), 2.093)
        held += estimate.low <= 0.6 <= estimate.high
    assert 132 <= held <= 149


def test_weights_go_by_what_varies_least() -> None:
    rows = rows_of(50)
    values = np.stack([rows.positive * 1.0, rows.positive * 1.0, np.zeros(100)], 1)
    values[:, 0] += np.random.default_rng(0).standard_normal(100) * 0.5
    values[:, 1] += np.random.default_rng(1).standard_normal(100) * 2.0
    found = weights(values, rows)
    assert found[0] > 5 * abs(found[1])
    assert found[2] == 0
