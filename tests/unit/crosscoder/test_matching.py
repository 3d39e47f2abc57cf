"""Identity over a re-fit: planted permutations, splits and merges, and two seeds of a real fit."""

from collections import Counter

import numpy as np
import pytest
import scipy.sparse

from featurewatch.workers.crosscoder.config import FitConfig, Layout
from featurewatch.workers.crosscoder.fit import fit
from featurewatch.workers.crosscoder.matching import LEAST, Link, assign, correlations, match
from tests.unit.crosscoder.planted import dense_code, directions, held

N, M = 6000, 40
THRESHOLD = 0.6


def _csr(dense: np.ndarray) -> scipy.sparse.csr_matrix:
    return scipy.sparse.csr_matrix(dense)


def _by_kind(links: list[Link]) -> dict[str, set[tuple[int | None, int | None]]]:
    kinds = ("carried", "retired", "split", "merged", "new")
    return {kind: {(link.old, link.new) for link in links if link.kind == kind} for kind in kinds}


def test_correlations_are_those_of_numpy() -> None:
    old, new = dense_code(500, 1500, 0.02, 0), dense_code(500, 30, 0.05, 1)
    new[:, 3] = 2 * old[:, 1400] + new[:, 3]
    old[:, 7] = new[:, 9] = 0.0  # dead
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.nan_to_num(np.corrcoef(old.T, new.T)[:1500, 1500:])
    expected[expected < 0.1] = 0.0
    np.testing.assert_allclose(correlations(_csr(old), _csr(new), 0.1).toarray(), expected, atol=1e-6)
    with pytest.raises(ValueError, match="the codes have 500 and 400 positions"):
        correlations(_csr(old), _csr(new[:400]))


def test_a_permuted_code_keeps_every_id() -> None:
    """Other magnitudes, a fifth of the firings lost and others in their place: still the same features."""
    rng = np.random.default_rng(0)
    old = dense_code(N, M, 0.05, 1)
    order = rng.permutation(M)
    new = old[:, order] * rng.uniform(0.5, 3, M) * rng.lognormal(0, 0.2, old.shape)
    new = np.where(rng.random(new.shape) < 0.2, 0, new) + dense_code(N, M, 0.005, 2)
    links = match(_csr(old), _csr(new), THRESHOLD)
    assert [(link.old, link.new, link.kind) for link in links] == [(o, j, "carried") for j, o in enumerate(order)]
    truth = np.corrcoef(old.T, new.T)[:M, M:]
    assert [link.score for link in links] == pytest.approx([truth[o, j] for j, o in enumerate(order)], abs=1e-5)


def test_unrelated_codes_share_no_id() -> None:
    links = match(_csr(dense_code(N, M, 0.05, 1)), _csr(dense_code(N, M, 0.05, 2)), THRESHOLD)
    assert Counter(link.kind for link in links) == {"retired": M, "new": M}
    assert all(link.score < LEAST for link in links)


def test_the_assignment_is_optimal_and_keeps_the_sure_pair() -> None:
    """Greedy by rows takes (0, 0) and leaves row 1 alone; the sum of r would give the sure pair (2, 2) up."""
    table = np.zeros((4, 4))
    table[0, 0], table[0, 1], table[1, 0] = 0.8, 0.75, 0.75
    table[2, 2], table[2, 3], table[3, 2] = 0.99, 0.61, 0.61
    assert assign(_csr(table), THRESHOLD).tolist() == [1, 0, 2, -1]
    assert assign(_csr(table), 0.9).tolist() == [-1, -1, 2, -1]
    assert assign(_csr(np.zeros((2, 3))), THRESHOLD).tolist() == [-1, -1, -1]


def test_split_merged_retired_and_new() -> None:
    old = dense_code(N, 7, 0.05, 1)
    new = np.zeros((N, 7))
    half = np.random.default_rng(2).random(N) < 0.5
    third = np.random.default_rng(3).integers(0, 3, N)
    new[:, 0] = old[:, 0]
    new[:, 1], new[:, 2] = old[:, 1] * half, old[:, 1] * ~half  # r about 0.7 each: over the threshold that is used
    new[:, 3] = old[:, 2] + old[:, 3] + old[:, 4]  # r about 0.58 with each
    new[:, 4] = dense_code(N, 1, 0.05, 9)[:, 0]
    new[:, 5] = old[:, 6] * (third == 0)
    found = _by_kind(match(_csr(old), _csr(new), 0.8))
    assert found == {
        "carried": {(0, 0)},
        "split": {(1, 1), (1, 2)},
        "merged": {(2, 3), (3, 3), (4, 3)},
        "retired": {(5, None), (6, None)},  # a third of 6 is left: no several ones that carry it
        "new": {(None, 4), (None, 5), (None, 6)},
    }


def test_one_of_the_merged_may_keep_its_id() -> None:
    """What is mostly one old feature goes on as that one; another that went into it says so, a trace does not."""
    old = dense_code(N, 3, 0.05, 1)
    new = (old[:, 0] + 0.6 * old[:, 1] + 0.15 * old[:, 2])[:, None]
    found = _by_kind(match(_csr(old), _csr(new), THRESHOLD))
    assert found["carried"] == {(0, 0)}
    assert found["merged"] == {(1, 0)}
    assert found["retired"] == {(2, None)}


def test_two_seeds_of_a_fit_have_the_same_features() -> None:
    """At least 95% of the planted features keep their id, although every latent started somewhere else."""
    planted, d, n = 48, 32, 8000
    truth = dense_code(n, planted, 3 / planted, seed=3)
    x = truth @ np.hstack([directions(planted, d, seed) for seed in (1, 2)])
    x += 0.03 * np.random.default_rng(4).standard_normal(x.shape)
    read = held((x - x.mean(0)) * np.sqrt(2 * d / (x - x.mean(0)).var(0).sum()), [d, d])
    codes = []
    for seed in (1, 2):
        config = FitConfig(n_features=64, k=3, steps=600, batch_size=256, learning_rate=5e-3, seed=seed)
        codes.append(fit(read, n, Layout((d, d)), config).model.encode(read.x).to_scipy())
    carried = {link.new: link.old for link in match(codes[0], codes[1], THRESHOLD) if link.kind == "carried"}
    nearest = [correlations(_csr(truth), code, 0.5).toarray().argmax(1) for code in codes]
    kept = [carried.get(int(b)) == int(a) for a, b in zip(*nearest, strict=True)]
    assert np.mean(kept) >= 0.95, f"{np.sum(kept)} of {planted}"
