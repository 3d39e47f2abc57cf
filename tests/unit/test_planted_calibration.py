"""Scores of the new kinds of events, of named successors, of intervals and of q-values: each mistake costs its due."""

import numpy as np
import pytest

from benchmarks.planted_calibration import coverage, q_values
from benchmarks.planted_data import make_lineage
from benchmarks.planted_score import Matching, score, successors_named
from benchmarks.planted_shape import UNBORN

N = 80


@pytest.fixture(scope="module")
def lineage():
    return make_lineage(
        4, n_checkpoints=4, n_positions=4000, width=16, n_planted=N, n_suppressed=6, n_removed=3, n_born=3,
        n_amplified=3, n_relocated=3, n_replaced=3, n_split=3, n_merged=3, n_exclusive=3, n_weakened=2,
        n_strengthened=2,
    )  # fmt: skip


@pytest.fixture
def matching():
    """Planted feature i is latent 100 + i."""
    return Matching(np.arange(N) + 100, np.ones(N), {})


@pytest.fixture
def perfect(lineage):
    return {
        checkpoint: {
            100 + i: status for i, status in enumerate(lineage.truth(checkpoint).against_parent) if status != UNBORN
        }
        for checkpoint in range(2, 5)
    }


@pytest.fixture
def rows(lineage):
    """Rows that are right, with intervals of 0.1 to either side; significant is what is outside the band."""
    found = {}
    for checkpoint in range(2, 5):
        ratios = lineage.ratios(checkpoint, checkpoint - 1)
        found[checkpoint] = {
            100 + i: {
                "projection_ratio": ratio,
                "projection_ratio_ci": [ratio - 0.1, ratio + 0.1],
                "q_value": 1e-6 if not 0.5 <= ratio <= 2 else 0.9,
            }
            for i, ratio in enumerate(ratios.tolist())
        }
    return found


def of(lineage, *kinds):
    return [event for event in lineage.events if event.kind in kinds]


def test_right_answers_score_one_in_every_class(lineage, matching, perfect):
    result = score(lineage, perfect, matching)
    assert result["macro_f1"] == result["macro_f1_matched"] == result["onset_accuracy"] == 1
    assert set(result["f1"].values()) == {1.0}
    assert set(result["onset_by_kind"]) == {event.kind for event in lineage.events}
    assert set(result["onset_by_kind"].values()) == {1.0}


def test_what_was_replaced_may_stay_replaced_and_what_was_removed_may_not(lineage, matching, perfect):
    replaced = next(event for event in of(lineage, "replaced") if event.checkpoint < 4)
    perfect[4][100 + replaced.feature] = "replaced"
    assert score(lineage, perfect, matching)["macro_f1"] == 1
    removed = next(event for event in of(lineage, "removed") if event.checkpoint < 4)
    perfect[4][100 + removed.feature] = "replaced"
    result = score(lineage, perfect, matching)
    assert result["confusion"] == {"absent -> replaced": 1}
    assert result["classes"]["replaced"]["precision"] == pytest.approx(12 / 13)
    assert result["classes"]["replaced"]["recall"] == 1


def test_absent_at_the_onset_of_a_replacement_is_wrong(lineage, matching, perfect):
    merged = of(lineage, "merged")[0]
    perfect[merged.checkpoint][100 + merged.feature] = "absent"
    result = score(lineage, perfect, matching)
    assert result["confusion"] == {"replaced -> absent": 1}
    assert result["onset_by_kind"]["merged"] < 1 == result["onset_by_kind"]["split"]


def test_missed_features_are_left_out_of_the_matched_score(lineage, matching, perfect):
    for event in of(lineage, "relocated")[:2]:
        matching.latent[event.feature] = -1
        for part in perfect.values():
            del part[100 + event.feature]
    result = score(lineage, perfect, matching)
    assert result["classes"]["relocated"]["recall"] == pytest.approx(1 / 3)
    assert result["macro_f1"] < 0.95 < result["macro_f1_matched"] == 1
    assert result["missed"] == 2


def test_a_dictionary_for_each_step_is_scored_through_its_own_matching(lineage, matching, perfect):
    steps = {c: Matching(matching.latent + 1000 * c, np.ones(N), {}) for c in perfect}
    moved = {c: {number + 1000 * c: status for number, status in part.items()} for c, part in perfect.items()}
    assert score(lineage, moved, steps)["macro_f1"] == 1
    assert score(lineage, moved, matching)["macro_f1"] == 0


def test_successors_are_right_when_all_planted_ones_are_named(lineage, matching):
    events = of(lineage, "replaced", "split", "merged")
    named = {c: {} for c in range(2, 5)}
    for event in events:
        named[event.checkpoint][100 + event.feature] = [100 + i for i in event.successors]
    assert successors_named(lineage, named, matching) == {"n": 12, "right": 1, "extra": 0}
    split, other = of(lineage, "split")[0], of(lineage, "replaced")[0]
    named[split.checkpoint][100 + split.feature].pop()
    named[other.checkpoint][100 + other.feature] += [7, 8]
    found = successors_named(lineage, named, matching)
    assert found["right"] == pytest.approx(11 / 12) and found["extra"] == pytest.approx(2 / 12)


def test_intervals_that_hold_the_truth_cover_and_shifted_ones_do_not(lineage, matching, rows):
    found = coverage(lineage, rows, matching)
    assert found["all"]["covered"] == 1 and found["without"] == 0
    assert {kind for kind in found if kind not in ("all", "without")} == {
        "present", "weakened", "strengthened", "suppressed", "absent", "amplified", "relocated", "replaced",
    }  # fmt: skip
    suppressed = of(lineage, "suppressed")
    for event in suppressed[:2]:
        row = rows[event.checkpoint][100 + event.feature]
        row["projection_ratio"] += 0.3
        row["projection_ratio_ci"] = [event.level + 0.2, event.level + 0.4]
    rows[suppressed[2].checkpoint][100 + suppressed[2].feature] |= {
        "projection_ratio": None, "projection_ratio_ci": None,
    }  # fmt: skip
    found = coverage(lineage, rows, matching)
    assert found["suppressed"]["n"] == 5
    assert found["suppressed"]["covered"] == pytest.approx(3 / 5)
    assert found["suppressed"]["bias"] == pytest.approx(0.6 / 5, abs=0.005)
    assert found["present"]["covered"] == 1 and found["without"] > 0


def test_false_discoveries_are_counted(lineage, matching, rows):
    right = q_values(lineage, rows, matching, 0.05)
    losses = of(lineage, "suppressed", "amplified", "relocated", "removed", "replaced", "split", "merged")
    assert right["significant"] == len(losses)
    assert right["false_share"] == right["unchanged_share"] == right["unmatched"] == 0
    touched = {event.feature for event in lineage.events}
    rows[3][100 + next(i for i in range(N) if i not in touched)]["q_value"] = 0.01
    rows[3][999] = {"projection_ratio": 1.0, "projection_ratio_ci": None, "q_value": 0.01}
    found = q_values(lineage, rows, matching, 0.05)
    assert found["false_share"] == pytest.approx(1 / (len(losses) + 1))
    assert found["unchanged_share"] == pytest.approx(1 / right["unchanged"])
    assert found["unmatched"] == 1
