"""Scoring of planted lineages: right answers score 1, and each kind of mistake costs what the rules say."""

import numpy as np
import pytest
from scipy import sparse

from benchmarks.planted_data import make_lineage
from benchmarks.planted_score import Matching, correlations, id_stability, match, ratio_errors, score
from benchmarks.planted_shape import UNBORN

N = 40


@pytest.fixture(scope="module")
def lineage():
    return make_lineage(
        2, n_checkpoints=5, n_positions=4000, width=16, n_planted=N, n_suppressed=6, n_removed=5, n_born=5
    )


@pytest.fixture
def matching():
    """Planted feature i is latent 100 + i."""
    return Matching(np.arange(N) + 100, np.ones(N), {500: 0})


@pytest.fixture
def perfect(lineage):
    return {
        checkpoint: {
            100 + i: status for i, status in enumerate(lineage.truth(checkpoint).against_parent) if status != UNBORN
        }
        for checkpoint in range(2, 6)
    }


def event(lineage, kind):
    return next(each for each in lineage.events if each.kind == kind and each.checkpoint < 5)


def test_right_answers_score_one(lineage, matching, perfect):
    result = score(lineage, perfect, matching)
    assert result["macro_f1"] == 1
    assert result["onset_accuracy"] == 1
    assert result["confusion"] == {}


def test_calling_the_unborn_absent_or_too_little_seen_costs_nothing(lineage, matching, perfect):
    for checkpoint, statuses in perfect.items():
        for i, status in enumerate(lineage.truth(checkpoint).against_parent):
            if status == UNBORN:
                statuses[100 + i] = "absent" if i % 2 else "indeterminate"
    assert score(lineage, perfect, matching)["macro_f1"] == 1


def test_calling_the_unborn_present_is_a_false_positive(lineage, matching, perfect):
    born = event(lineage, "born")
    late = next(each for each in lineage.events if each.kind == "born" and each.checkpoint > 2)
    perfect[2][100 + late.feature] = "present"
    result = score(lineage, perfect, matching)
    assert result["f1"]["present"] < 1
    assert result["f1"]["suppressed"] == 1
    assert born.kind == "born"


def test_a_removed_feature_must_stay_absent(lineage, matching, perfect):
    removed = event(lineage, "removed")
    perfect[5][100 + removed.feature] = "present"
    result = score(lineage, perfect, matching)
    assert result["f1"]["absent"] < 1
    assert result["confusion"] == {"absent -> present": 1}
    assert result["onset_accuracy"] == 1


def test_a_late_call_costs_the_onset(lineage, matching, perfect):
    suppressed = event(lineage, "suppressed")
    latent = 100 + suppressed.feature
    perfect[suppressed.checkpoint][latent] = "present"
    perfect[suppressed.checkpoint + 1][latent] = "suppressed"
    result = score(lineage, perfect, matching)
    assert result["onset_accuracy"] == pytest.approx(15 / 16)
    assert result["f1"]["suppressed"] == pytest.approx(5 / 6)


def test_a_missed_feature_is_wrong_everywhere(lineage, matching, perfect):
    suppressed = event(lineage, "suppressed")
    matching.latent[suppressed.feature] = -1
    result = score(lineage, perfect, matching)
    assert result["missed"] == 1
    assert result["f1"]["suppressed"] < 1
    assert sum(count for pair, count in result["confusion"].items() if pair.endswith("missed")) == 4


def test_latents_without_a_planted_feature(lineage, matching, perfect):
    untouched = next(i for i in range(N) if i not in {each.feature for each in lineage.events})
    suppressed = event(lineage, "suppressed")
    matching.follows.update({600: suppressed.feature, 601: untouched})
    perfect[suppressed.checkpoint][600] = "suppressed"  # a second latent of the suppressed feature: right
    assert score(lineage, perfect, matching)["macro_f1"] == 1
    perfect[suppressed.checkpoint] |= {601: "absent", 602: "emerged", 603: "present", 604: "indeterminate"}
    result = score(lineage, perfect, matching)
    assert result["confusion"] == {"nothing -> absent": 1, "nothing -> emerged": 1}
    assert result["f1"]["suppressed"] == result["f1"]["present"] == 1


def test_ratio_errors_are_those_at_the_onset(lineage, matching):
    ratios = {checkpoint: dict.fromkeys(range(100, 100 + N), 1.0) for checkpoint in range(2, 6)}
    lost = [each for each in lineage.events if each.kind != "born"]
    for number, each in enumerate(lost):
        ratios[each.checkpoint][100 + each.feature] = each.level + (0.2 if number == 0 else -0.01)
    found = ratio_errors(lineage, ratios, matching)
    assert found["n"] == len(lost) == 11
    assert found["largest"] == pytest.approx(0.2, abs=1e-3)
    assert found["bias"] == pytest.approx((0.2 - 10 * 0.01) / 11, abs=1e-3)


def test_correlations_are_pearsons():
    rng = np.random.default_rng(0)
    left, right = (
        rng.random((200, 4)) * (rng.random((200, 4)) < 0.3),
        rng.random((200, 3)) * (rng.random((200, 3)) < 0.3),
    )
    right[:, 2] = 0
    found = correlations(sparse.csr_array(left), sparse.csr_array(right))
    np.testing.assert_allclose(found[:, :2], np.corrcoef(left.T, right[:, :2].T)[:4, 4:], atol=1e-12)
    assert (found[:, 2] == 0).all()
    with pytest.raises(ValueError, match="positions"):
        correlations(sparse.csr_array(left), sparse.csr_array(right[:10]))


def test_matching_is_one_to_one_best_first_and_ids_are_compared(lineage):
    rng = np.random.default_rng(1)
    order = rng.permutation(N)
    codes = lineage.codes.toarray()[:, order]
    codes[:, 0] = 0  # a feature that no latent follows
    twin = codes[:, [1]] + 0.5 * rng.random((len(codes), 1))
    matching = match(lineage.codes, sparse.csr_array(np.hstack([codes, twin])), list(range(1000, 1000 + N + 1)))
    assert matching.latent[order[0]] == -1
    for column in range(1, N):
        assert matching.latent[order[column]] == 1000 + column
    assert matching.follows == {1000 + N: order[1]}
    moved = Matching(matching.latent.copy(), matching.correlation, {})
    moved.latent[order[1]] = 1000 + N
    assert id_stability(matching, moved) == pytest.approx((N - 2) / (N - 1))
    assert id_stability(matching, matching) == 1
