"""The rule: measurements in, statuses out. Every test runs with warnings of numpy as errors."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError
from scipy.stats import false_discovery_control, t

from featurewatch.service.verdicts.judge import (
    Evidence,
    Judgement,
    Successor,
    estimates,
    estimates_of_ratios,
    judge,
    quantile,
    standard_error,
    weighted_median,
)
from featurewatch.service.verdicts.policy import Policy
from featurewatch.service.verdicts.significance import benjamini_hochberg, spending
from featurewatch.service.verdicts.statuses import Status

pytestmark = pytest.mark.filterwarnings("error")

FOLDS, BACKGROUND = 20, 60
NAN = float("nan")


class Case(NamedTuple):
    ratio: float = 1.0
    error: float = 0.03
    orthogonal: float = 0.1
    firings: int = 500
    documents: int = 50
    readability: float = 0.8
    readability_before: float = 0.8
    z: float = 50.0
    there_before: bool = True
    born: bool = False


def _replicates(value: float, error: float) -> np.ndarray:
    """[K + 1] with this estimate and exactly this jackknife standard error."""
    pattern = np.resize([1.0, -1.0], FOLDS) * error / np.sqrt(FOLDS - 1)
    return np.concatenate([[value], value + pattern]).astype(np.float32)


def _evidence(cases: list[Case], successors: dict[int, list[Successor]] | None = None) -> Evidence:
    """The cases first, then features to which nothing happened."""
    every = cases + [Case()] * BACKGROUND
    strength = [np.hypot(c.ratio, c.orthogonal) for c in every]
    return Evidence(
        projection=np.stack([_replicates(c.ratio, c.error) for c in every], 1),
        strength_ratio=np.stack([_replicates(s, c.error) for s, c in zip(strength, every, strict=True)], 1),
        orthogonal=np.stack([_replicates(c.orthogonal, 0.02) for c in every], 1),
        firings=np.array([c.firings for c in every]),
        documents=np.array([c.documents for c in every]),
        readability=np.array([c.readability for c in every], dtype=np.float32),
        readability_before=np.array([c.readability_before for c in every], dtype=np.float32),
        baseline_z=np.array([c.z for c in every], dtype=np.float32),
        there_before=np.array([c.there_before for c in every]),
        born_here=np.array([c.born for c in every]),
        successors=successors or {},
    )


def _judge(case: Case, policy: Policy | None = None, successors: list[Successor] | None = None) -> Judgement:
    return judge(_evidence([case], {0: successors} if successors else None), policy or Policy())


# An interval reaches 2.09 standard errors to either side (t, 19 degrees of freedom).
TABLE = {
    "unchanged": (Case(), Status.PRESENT),
    "weaker, inside the band": (Case(ratio=0.6), Status.PRESENT),
    "stronger, inside the band": (Case(ratio=1.8), Status.PRESENT),
    "weaker, the interval leaves the band": (Case(ratio=0.6, error=0.06), Status.INDETERMINATE),
    "stronger, the interval leaves the band": (Case(ratio=1.9, error=0.06), Status.INDETERMINATE),
    "suppressed": (Case(ratio=0.3), Status.SUPPRESSED),
    "suppressed, the interval reaches under absent": (Case(ratio=0.12), Status.SUPPRESSED),
    "suppressed and read no longer": (Case(ratio=0.3, readability=0.0), Status.SUPPRESSED),
    "under the band, not significantly": (Case(ratio=0.45, error=0.05), Status.INDETERMINATE),
    "amplified": (Case(ratio=3.0), Status.AMPLIFIED),
    "over the band, not significantly": (Case(ratio=2.2, error=0.2), Status.INDETERMINATE),
    "absent": (Case(ratio=0.02), Status.ABSENT),
    "absent, written a little backwards": (Case(ratio=-0.05), Status.ABSENT),
    "zero, but too wide to be sure of absent": (Case(ratio=0.0, error=0.08), Status.SUPPRESSED),
    "zero, but too wide to say anything": (Case(ratio=0.0, error=1.0), Status.INDETERMINATE),
    "too few firings": (Case(ratio=0.0, firings=29), Status.INDETERMINATE),
    "firings enough": (Case(ratio=0.0, firings=30), Status.ABSENT),
    "too few documents": (Case(ratio=0.0, documents=4), Status.INDETERMINATE),
    "documents enough": (Case(ratio=0.0, documents=5), Status.ABSENT),
    "the baseline is noise": (Case(ratio=0.0, z=1.9), Status.INDETERMINATE),
    "no ratio": (Case(ratio=NAN), Status.INDETERMINATE),
    "written, but read no longer": (Case(readability=0.1), Status.INDETERMINATE),
    "never read well": (Case(readability=0.1, readability_before=0.15), Status.PRESENT),
    "never read at all": (Case(readability=0.0, readability_before=0.03), Status.PRESENT),
    "readability not measured": (Case(readability=NAN), Status.PRESENT),
    "readability not measured before": (Case(readability=0.5, readability_before=NAN), Status.PRESENT),
    "relocated": (Case(ratio=0.1, orthogonal=0.95), Status.RELOCATED),
    "relocated all the way": (Case(ratio=0.0, orthogonal=1.0), Status.RELOCATED),
    "turned, but not weakened": (Case(ratio=0.7, orthogonal=0.7), Status.PRESENT),
    "weakened, hardly more beside": (Case(ratio=0.1, orthogonal=0.5), Status.SUPPRESSED),
    "written elsewhere, but not its code": (Case(ratio=0.2, orthogonal=0.95, readability=0.05), Status.SUPPRESSED),
    "gone stays gone": (Case(ratio=0.02, there_before=False), Status.ABSENT),
    "gone, and not surely back": (Case(ratio=0.25, error=0.1, there_before=False), Status.ABSENT),
    "gone, back in part": (Case(ratio=0.3, there_before=False), Status.SUPPRESSED),
    "gone, back": (Case(ratio=0.9, there_before=False), Status.EMERGED),
    "gone, back and stronger": (Case(ratio=4.0, there_before=False), Status.EMERGED),
    "gone, hardly fires here": (Case(ratio=0.9, there_before=False, firings=3), Status.INDETERMINATE),
    "born here": (Case(ratio=NAN, born=True), Status.EMERGED),
    "born here, whatever it is divided by": (Case(ratio=7.0, born=True), Status.EMERGED),
}


def test_many_features_that_are_hardly_written_do_not_make_the_size() -> None:
    """They outnumber what the models share, and the new one does not have them. Their ratios are as unsure as small."""
    own = [Case(ratio=0.2, error=0.3)] * (2 * BACKGROUND)
    got = judge(_evidence([Case(), Case(ratio=0.3), *own]), Policy())
    assert got.size_factor == pytest.approx(1.0)
    assert got.strength_size == pytest.approx(np.hypot(1.0, 0.1))
    assert got.status[:2] == [Status.PRESENT, Status.SUPPRESSED]


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_features_that_are_equally_sure_have_one_vote_each(scale: float) -> None:
    cases = [Case(ratio=scale * ratio, error=0.03 * scale) for ratio in (0.2, 0.2, 0.2, 3.0)]
    evidence = _evidence(cases)
    evidence.projection[:, len(cases) :] *= np.float32(scale)
    assert judge(evidence, Policy()).size_factor == pytest.approx(scale)


@pytest.mark.parametrize("name", TABLE)
def test_table(name: str) -> None:
    case, status = TABLE[name]
    got = _judge(case)
    assert got.status[0] == status
    assert set(got.status[1:]) == {Status.PRESENT}


def test_the_whole_table_at_once() -> None:
    """BH over many features at once takes no clear case back."""
    cases = [case for case, _ in TABLE.values()]
    assert judge(_evidence(cases), Policy()).status[: len(cases)] == [status for _, status in TABLE.values()]


ONE = [Successor(1, "replaced", cofiring=0.8, strength=0.9)]
SUCCESSIONS = {
    "one": (0.0, ONE, Status.REPLACED),
    "of a suppressed one": (0.3, ONE, Status.REPLACED),
    "split": (0.0, [Successor(1, "split", 0.25, 0.4), Successor(2, "split", 0.25, 0.4)], Status.REPLACED),
    "split into two that write little": (
        0.0,
        [Successor(1, "split", 0.25, 0.3), Successor(2, "split", 0.25, 0.3)],
        Status.ABSENT,
    ),
    "merged": (0.0, [Successor(1, "merged", 0.5, 0.6)], Status.REPLACED),
    "fires there too rarely": (0.0, [Successor(1, "replaced", 0.39, 0.9)], Status.ABSENT),
    "writes too little there": (0.0, [Successor(1, "replaced", 0.8, 0.49)], Status.ABSENT),
    "writes too little in the place of a suppressed one": (
        0.3,
        [Successor(1, "replaced", 0.8, 0.4)],
        Status.SUPPRESSED,
    ),
    "of one that is present": (1.0, ONE, Status.PRESENT),
    "of one that is stronger": (3.0, ONE, Status.AMPLIFIED),
}


@pytest.mark.parametrize("name", SUCCESSIONS)
def test_successions(name: str) -> None:
    ratio, successors, status = SUCCESSIONS[name]
    assert _judge(Case(ratio=ratio), successors=successors).status[0] == status


def test_relocated_is_said_before_replaced_and_gone_ones_have_no_successor() -> None:
    assert _judge(Case(ratio=0.1, orthogonal=0.95), successors=ONE).status[0] == Status.RELOCATED
    assert _judge(Case(ratio=0.0, there_before=False), successors=ONE).status[0] == Status.ABSENT


def test_levels_are_spent_over_a_lineage() -> None:
    """What is significant at first is not at the hundredth comparison, unless it is clear; the shares sum to 1."""
    assert sum(spending(t) for t in range(1, 10_000)) < 1 < sum(spending(t) for t in range(1, 10_000)) + 0.59 / 9
    assert all(spending(t + 1) < spending(t) for t in range(1, 100))
    faint, clear = Case(ratio=0.4, error=0.025), Case(ratio=0.2, error=0.02)
    for comparison, sequential, said in (
        (1, True, "suppressed"),
        (100, True, "indeterminate"),
        (100, False, "suppressed"),
    ):
        evidence = _evidence([faint, clear])
        evidence.comparison = comparison
        got = judge(evidence, Policy(sequential=sequential, code_error=0))
        assert got.status[:2] == [said, "suppressed"]
        assert got.level == pytest.approx(0.05 * (spending(comparison) if sequential else 1))


def test_figures() -> None:
    """Estimate, interval, change and what could have been detected, from the definitions."""
    got = _judge(Case(ratio=0.3, error=0.04, orthogonal=0.1))
    error = np.hypot(0.04, Policy().code_error * 0.7)
    reach = t.ppf(0.975, FOLDS - 1) * error
    assert got.projection_ratio[0] == pytest.approx(0.3)
    assert (got.projection_ratio_lo[0], got.projection_ratio_hi[0]) == pytest.approx(
        (0.3 - reach, 0.3 + reach), abs=1e-6
    )
    assert got.change[0] == pytest.approx(np.log2(1 / 0.3), rel=1e-5)
    assert got.minimum_detectable_ratio[0] == pytest.approx(1 - 2 * reach, abs=1e-6)
    p = 2 * t.cdf((0.3 - 0.5) / error, FOLDS - 1)
    assert got.q_value[0] == pytest.approx(p * (BACKGROUND + 1), rel=1e-3)
    assert got.orthogonal_ratio[0] == pytest.approx(0.1)
    assert got.size_factor == pytest.approx(1.0)
    assert got.weakened.tolist() == [True] + [False] * BACKGROUND
    assert _judge(Case(ratio=3.0)).strengthened[0]
    assert not _judge(Case(ratio=3.0)).weakened[0]


def test_nothing_is_said_of_what_is_not_solid() -> None:
    for case in (Case(firings=3), Case(z=0.0), Case(ratio=NAN), Case(born=True)):
        got = _judge(case)
        for name in ("projection_ratio", "projection_ratio_lo", "projection_ratio_hi", "strength_ratio",
                     "strength_ratio_lo", "strength_ratio_hi", "orthogonal_ratio", "q_value",
                     "minimum_detectable_ratio"):  # fmt: skip
            assert np.isnan(getattr(got, name)[0]), name
    assert np.isnan(_judge(Case(error=0.5)).minimum_detectable_ratio[0])  # nothing could have been told from 1


def test_change_is_zero_where_nothing_happened_and_orders_the_rest() -> None:
    names = ["unchanged", "weaker, the interval leaves the band", "gone stays gone", "too few firings"]
    got = judge(_evidence([TABLE[name][0] for name in names]), Policy())
    assert got.change.tolist() == [0.0] * (len(names) + BACKGROUND)
    names = ["suppressed", "absent", "born here"]
    change = judge(_evidence([TABLE[name][0] for name in names]), Policy()).change[:3]
    assert 0 < change[0] < change[1] <= change[2]


@pytest.mark.parametrize("scale", [0.1, 1.7, 25.0])
def test_a_global_change_of_scale_is_no_event(scale: float) -> None:
    cases = [case for case, _ in TABLE.values()]
    plain, scaled = (_evidence(cases) for _ in range(2))
    for array in (scaled.projection, scaled.strength_ratio, scaled.orthogonal):
        np.multiply(array, np.float32(scale), out=array)
    a, b = judge(plain, Policy()), judge(scaled, Policy())
    assert a.status == b.status
    assert b.size_factor == pytest.approx(scale * a.size_factor, rel=1e-5)
    assert b.strength_size == pytest.approx(scale * a.strength_size, rel=1e-5)
    np.testing.assert_allclose(a.projection_ratio, b.projection_ratio, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(a.strength_ratio, b.strength_ratio, rtol=1e-5)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38, -1e30])
@pytest.mark.parametrize("row", [0, 1, FOLDS])
def test_ratios_that_are_no_numbers_touch_no_other_feature(value: float, row: int) -> None:
    """A baseline that a replicate takes for nothing gives infinite ratios: they are masked, not calculated with."""
    wanted = judge(_evidence([Case(ratio=0.3)]), Policy())
    evidence = _evidence([Case(ratio=0.3), Case(), Case(), Case()])
    evidence.projection[row, 1] = evidence.strength_ratio[row, 2] = evidence.orthogonal[row, 3] = value
    got = judge(evidence, Policy())
    assert got.status[:4] == [Status.SUPPRESSED, Status.INDETERMINATE, Status.PRESENT, Status.PRESENT]
    assert np.isnan(got.strength_ratio[2])
    assert got.size_factor == wanted.size_factor
    assert got.strength_size == pytest.approx(wanted.strength_size)
    assert set(got.status[4:]) == {Status.PRESENT}


def test_the_same_weights_twice() -> None:
    """All ratios exactly 1, no error at all: present, and a q-value of 1."""
    got = judge(_evidence([Case(error=0.0)] * 10), Policy())
    assert set(got.status) == {Status.PRESENT}
    assert got.q_value.min() == 1.0


@pytest.mark.parametrize("folds", [1, 2])
def test_few_folds(folds: int) -> None:
    """One document leaves one fold and no interval: nothing is significant. Two give very wide ones."""
    evidence = _evidence([Case(ratio=0.0)])
    for name in ("projection", "strength_ratio", "orthogonal"):
        setattr(evidence, name, getattr(evidence, name)[: folds + 1])
    got = judge(evidence, Policy())
    if folds == 1:
        assert set(got.status) == {Status.INDETERMINATE}
    assert got.weakened.sum() <= 1


def test_no_feature_at_all() -> None:
    evidence = _evidence([])
    for name, value in vars(evidence).items():
        if isinstance(value, np.ndarray):
            setattr(evidence, name, value[..., :0])
    got = judge(evidence, Policy())
    assert got.status == []
    assert got.size_factor == 1.0


def test_false_discoveries_are_bounded() -> None:
    """40 features that sit on the band's lower edge, in 400 comparisons: with BH at 5% two-sided, 2.5% of the
    comparisons name any. By chance (binomial, sd 0.8%) hardly ever over 5.5%; without BH 63% would."""
    rng = np.random.default_rng(0)
    named = 0
    for _ in range(400):
        evidence = _evidence([Case(ratio=0.5)] * 40)
        folds = 0.5 + 0.2 * rng.standard_normal((FOLDS, 40))
        left_out = (folds.sum(0) - folds) / (FOLDS - 1)
        evidence.projection[:, :40] = np.concatenate([folds.mean(0)[None], left_out])
        named += Status.SUPPRESSED in judge(evidence, Policy()).status
    assert named / 400 < 0.055


@given(st.data(), st.sampled_from([1e-6, 1.0, 1e5]), st.sampled_from([0.0, 1.0, 1e6]))
@settings(max_examples=100, deadline=None)
def test_weighted_median_is_what_a_sort_finds(data: st.DataObject, scale: float, usual: float) -> None:
    n = data.draw(st.integers(1, 40))
    numbers = st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(-3, 3, width=32))
    values = np.array(data.draw(st.lists(numbers, min_size=n, max_size=n)), dtype=np.float32) * np.float32(scale)
    weights = np.array(data.draw(st.lists(st.integers(1, 5), min_size=n, max_size=n)), dtype=np.float64)
    drawn = np.repeat(np.sort(values), weights[np.argsort(values, kind="stable")].astype(int))
    assert weighted_median(values, weights, usual * scale) == pytest.approx(np.median(drawn.astype(np.float64)))


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 5000, 40_000])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 1.0])
def test_quantile_is_what_a_sort_finds(n: int, share: float) -> None:
    """Also of what a sample misleads about: in order, with ties, with tails, large where the sample looks."""
    rng = np.random.default_rng(n)
    large = np.where(np.arange(n) % 16 == 0, 1e6, rng.normal(size=n))
    drawn = rng.normal(1, 0.05, n), np.sort(rng.normal(size=n)), rng.integers(0, 3, n), rng.standard_cauchy(n), large
    for values in (np.asarray(one, dtype=np.float32) for one in drawn):
        assert quantile(values, share) == pytest.approx(np.quantile(values.astype(np.float64), share), rel=1e-6)


def test_ratios_of_stored_arrays_are_estimated_as_if_they_were_there() -> None:
    rng = np.random.default_rng(3)
    over, under = (
        (rng.uniform(0.5, 2, m) * rng.normal(1, 0.03, (rows, m))).astype(np.float32)
        for rows, m in ((6, 20_000), (5, 19_000))
    )
    numbers = np.flatnonzero(rng.random(20_500) < 0.9)
    got, there = estimates_of_ratios(over, under, numbers), numbers < 19_000
    wanted = estimates(over[:5, numbers[there]] / under[:, numbers[there]])
    assert got.folds == wanted.folds == 4
    for one, other in zip(got[:3], wanted[:3], strict=True):
        np.testing.assert_allclose(one[there], other, rtol=1e-4, atol=1e-6)
    assert np.isnan(got.value[~there]).all()
    assert not got.sized[~there].any()


def test_standard_error_is_that_of_a_mean() -> None:
    """The jackknife of a mean over equal folds is the usual standard error."""
    folds = np.random.default_rng(0).standard_normal((FOLDS, 3))
    left_out = (folds.sum(0) - folds) / (FOLDS - 1)
    got = standard_error(np.concatenate([folds.mean(0)[None], left_out]).astype(np.float32))
    np.testing.assert_allclose(got, folds.std(0, ddof=1) / np.sqrt(FOLDS), rtol=1e-5)


@settings(max_examples=200)
@given(arrays(np.float64, st.integers(0, 30), elements=st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.01, 1.0]))),
       st.data())  # fmt: skip
def test_benjamini_hochberg_is_scipy_s(p: np.ndarray, data: st.DataObject) -> None:
    unknown = data.draw(arrays(np.bool_, len(p)))
    p = p.copy()
    p[unknown] = np.nan
    q = benjamini_hochberg(p)
    assert np.isnan(q[unknown]).all()
    if (~unknown).any():
        np.testing.assert_allclose(q[~unknown], false_discovery_control(p[~unknown]))


def test_a_policy_moves_the_lines() -> None:
    case = Case(ratio=0.3)
    assert _judge(case, Policy(suppressed_below=0.2)).status[0] == Status.PRESENT
    assert _judge(case, Policy(suppressed_below=0.7, absent_below=0.4)).status[0] == Status.ABSENT
    assert _judge(Case(ratio=1.8), Policy(amplified_above=1.5)).status[0] == Status.AMPLIFIED
    assert _judge(Case(firings=100), Policy(min_firings=101)).status[0] == Status.INDETERMINATE
    assert _judge(Case(documents=50), Policy(min_documents=51)).status[0] == Status.INDETERMINATE
    assert _judge(Case(readability=0.3), Policy(min_readability=0.5)).status[0] == Status.INDETERMINATE
    assert _judge(Case(ratio=0.44), Policy(fdr=0.001)).status[0] == Status.INDETERMINATE
    assert _judge(Case(ratio=0.0), Policy(successor_cofiring=0.9), ONE).status[0] == Status.ABSENT
    assert _judge(Case(ratio=0.0), Policy(successor_strength=1.0), ONE).status[0] == Status.ABSENT
    narrow, wide = (_judge(Case(ratio=0.56), Policy(confidence=c)) for c in (0.8, 0.99))
    assert (narrow.status[0], wide.status[0]) == (Status.PRESENT, Status.INDETERMINATE)


@pytest.mark.parametrize(
    "values",
    [
        {"suppressed_below": 0}, {"suppressed_below": 1}, {"amplified_above": 1}, {"absent_below": 0}, {"fdr": 0},
        {"fdr": 1}, {"confidence": 0.5}, {"confidence": 1}, {"min_firings": 0}, {"min_documents": 1},
        {"min_readability": 1.1}, {"successor_cofiring": 0}, {"successor_strength": 0}, {"new_features": -1},
        {"max_norm_ratio": 1}, {"skip_tokens": -1}, {"max_fvu_ratio": 1}, {"refit_every": -1}, {"match_threshold": 0},
        {"unknown": 1}, {"fdr": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_policies_that_cannot_be(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Policy.model_validate(values)
