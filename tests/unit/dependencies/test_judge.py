"""Edges above the noise, changes between checkpoints, and `rewired` only where something was rewired."""

import numpy as np
import pytest

from featurewatch.service.dependencies.judge import ALIKE, compare, edges, enough, replicates
from featurewatch.service.verdicts.policy import Policy

POLICY = Policy()
K, E = 20, 200
PROFILE = np.zeros(E)
PROFILE[:5] = [1.0, 0.8, -0.6, 0.4, 0.3]


def sample(profile: np.ndarray, rng: np.random.Generator, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts of 20 folds of about 15 positions; sources vary by position."""
    counts = rng.integers(5, 25, K).astype(float)
    live = np.arange(E) % 4 != 3
    mean = profile + noise * live * rng.standard_normal((K, E)) / np.sqrt(counts)[:, None]
    return mean * counts[:, None], counts


def test_replicates_leave_out_one_fold() -> None:
    rng = np.random.default_rng(0)
    sums, counts = sample(PROFILE, rng)
    counts[3], sums[3] = 0, 0
    got = replicates(sums, counts)
    assert got.shape == (K, E)
    assert np.allclose(got[0], sums.sum(0) / counts.sum())
    keep = np.arange(K) != 5
    assert np.allclose(got[5], sums[keep].sum(0) / counts[keep].sum())
    assert enough(counts) and not enough(np.array([4.0, 0, 3]))


def test_edges_are_those_above_the_noise() -> None:
    rng, false = np.random.default_rng(1), 0
    for _ in range(50):
        got = edges(*sample(PROFILE, rng), POLICY)
        assert got.kept[:4].all()
        assert (got.lo < got.weight).all() and (got.weight < got.hi).all()
        false += int(got.kept[5:].sum())
    assert false <= 50 * 5 * 0.1, "at most about one in twenty of what is kept is noise"
    silent = edges(*sample(np.zeros(E), rng, noise=0.0), POLICY)
    assert not silent.kept.any() and np.isnan(silent.q).all()


def test_exactly_what_was_planted_is_lost_and_gained() -> None:
    rng = np.random.default_rng(2)
    after = PROFILE.copy()
    after[:2], after[8:10] = 0, [0.9, 0.9]
    for _ in range(20):
        found = compare(sample(PROFILE, rng), sample(after, rng), POLICY)
        assert found.rewired and found.agreement is not None and found.agreement < 0.6
        kinds = {change.index: change.kind for change in found.changes}
        assert {i for i, kind in kinds.items() if kind == "lost"} >= {0, 1}
        assert {i for i, kind in kinds.items() if kind == "gained"} >= {8, 9}
        assert len(kinds) <= 6


def test_an_edge_that_moved_is_changed_and_a_sign_that_turned_too() -> None:
    rng = np.random.default_rng(3)
    after = PROFILE.copy()
    after[0], after[2] = 0.5, 0.6
    changes = {c.index: c for c in compare(sample(PROFILE, rng, 0.05), sample(after, rng, 0.05), POLICY).changes}
    assert {i: c.kind for i, c in changes.items()} == {0: "changed", 2: "changed"}
    assert changes[0].lo < -0.5 < changes[0].hi and changes[2].lo < 1.2 < changes[2].hi


@pytest.mark.parametrize("noise", [0.05, 0.3, 1.0])
def test_resampled_documents_are_not_rewired(noise: float) -> None:
    """The null: two samples of documents of one checkpoint. At most 1% of it is called rewired."""
    rng = np.random.default_rng(4)
    called = [compare(sample(PROFILE, rng, noise), sample(PROFILE, rng, noise), POLICY).rewired for _ in range(400)]
    assert sum(bool(one) for one in called) <= 4
    assert sum(one is None for one in called) <= (400 if noise == 1.0 else 0)


def test_rounding_is_not_rewiring() -> None:
    rng = np.random.default_rng(5)
    sums, counts = sample(PROFILE, rng)
    rounded = sums * (1 + 0.004 * rng.standard_normal(sums.shape))
    found = compare((sums, counts), (rounded, counts), POLICY)
    assert found.rewired is False and not found.changes
    assert found.agreement == pytest.approx(1, abs=0.01)
    same = compare((sums, counts), (sums, counts), POLICY)
    assert same.agreement == pytest.approx(1) and not same.changes and same.rewired is False


def test_noise_does_not_lower_the_agreement() -> None:
    rng = np.random.default_rng(6)
    found = [compare(sample(PROFILE, rng, 0.5), sample(PROFILE, rng, 0.5), POLICY).agreement for _ in range(100)]
    plain = []
    for _ in range(100):
        one, two = (replicates(*sample(PROFILE, rng, 0.5))[0] for _ in range(2))
        plain.append(one @ two / np.linalg.norm(one) / np.linalg.norm(two))
    assert abs(np.mean([value for value in found if value is not None]) - 1) < 0.02
    assert np.mean(plain) < ALIKE + 0.05


def test_nothing_is_said_of_what_is_all_noise() -> None:
    rng = np.random.default_rng(7)
    found = compare(sample(np.zeros(E), rng), sample(np.zeros(E), rng), POLICY)
    assert (found.agreement, found.rewired) == (None, None)
    few = np.zeros(K)
    few[:2] = 3
    assert compare((few[:, None] * PROFILE, few), (few[:, None] * PROFILE, few), POLICY).rewired is None
