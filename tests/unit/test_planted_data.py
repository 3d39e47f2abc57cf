"""The planted lineages are what they say: an oracle that knows the codes finds the levels, scales and turns again."""

import json
from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks.planted_data import make_lineage, write_checkpoint
from benchmarks.planted_shape import ABSENT, EMERGED, PRESENT, SUPPRESSED, UNBORN
from benchmarks.planted_truth import status_of

SMALL = {
    "n_checkpoints": 4, "n_positions": 6000, "width": 48, "n_planted": 40, "n_suppressed": 6, "n_removed": 3,
    "n_born": 3, "lowest_rate": 0.01, "scale_wander": 0.3,
}  # fmt: skip


@pytest.fixture(scope="module")
def lineage():
    return make_lineage(5, **SMALL)


def decoders(lineage, checkpoint):
    """Least squares on the true codes: [n_planted, width], the mean and the scale taken out."""
    x = lineage.activations(checkpoint).astype(np.float64)
    codes = lineage.codes.toarray().astype(np.float64)
    return np.linalg.lstsq(codes - codes.mean(0), x - x.mean(0), rcond=None)[0]


def test_same_seed_same_lineage_and_other_seed_another(lineage):
    again, other = make_lineage(5, **SMALL), make_lineage(6, **SMALL)
    np.testing.assert_array_equal(again.activations(3), lineage.activations(3))
    assert again.events == lineage.events
    assert not np.array_equal(other.activations(3), lineage.activations(3))


def test_an_oracle_finds_the_levels_in_the_activations(lineage):
    for checkpoint in range(1, 5):
        solved = decoders(lineage, checkpoint)
        along = (solved * lineage.directions(checkpoint)).sum(1)
        levels = lineage.levels(checkpoint)
        along /= np.median(along[levels == 1])
        np.testing.assert_allclose(along, levels, atol=0.06)


def test_directions_turn_slowly_and_stay_unit_vectors(lineage):
    for checkpoint in range(2, 5):
        before, now = lineage.directions(checkpoint - 1), lineage.directions(checkpoint)
        np.testing.assert_allclose(np.linalg.norm(now, axis=1), 1)
        angles = np.rad2deg(np.arccos((before * now).sum(1)))
        assert 0 < angles.min() < angles.max() <= 2 * lineage.shape.turn_degrees + 1e-6
        assert angles.mean() == pytest.approx(lineage.shape.turn_degrees, rel=0.3)


def test_rates_and_bursts_are_as_asked_for():
    lineage = make_lineage(1, n_positions=20_000, n_planted=128, width=32)
    fired = lineage.codes.toarray() > 0
    rates = fired.mean(0)
    assert rates.min() > 0.001 and rates.max() < 0.06
    lengths = np.bincount(lineage.document)
    assert lengths[:-1].mean() == pytest.approx(100, rel=0.1)
    # Topics make counts of firings per document vary more than independent positions would (variance over mean).
    counts = np.stack([np.bincount(lineage.document, weights=fired[:, i]) for i in range(128)])
    often = rates > 0.01
    assert np.median(counts[often].var(1) / counts[often].mean(1)) > 1.5


def test_truth_against_parent_counts_an_event_where_it_happens(lineage):
    for event in lineage.events:
        for checkpoint in range(2, 5):
            truth = lineage.truth(checkpoint)
            parent, first = truth.against_parent[event.feature], truth.against_first[event.feature]
            expected = {
                "suppressed": (PRESENT, PRESENT) if checkpoint < event.checkpoint
                else (SUPPRESSED if checkpoint == event.checkpoint else PRESENT, SUPPRESSED),
                "removed": (PRESENT, PRESENT) if checkpoint < event.checkpoint else (ABSENT, ABSENT),
                "born": (UNBORN, UNBORN) if checkpoint < event.checkpoint
                else (EMERGED if checkpoint == event.checkpoint else PRESENT, EMERGED),
            }[event.kind]  # fmt: skip
            assert (parent, first) == expected, (event, checkpoint)
    touched = {event.feature for event in lineage.events}
    assert {lineage.truth(4).against_parent[i] for i in range(40) if i not in touched} == {PRESENT}
    assert Counter(event.kind for event in lineage.events) == {"suppressed": 6, "removed": 3, "born": 3}


def test_status_of_knows_amplification():
    assert status_of(0.3, 1.0) == "amplified"
    assert status_of(0.6, 1.0) == "strengthened"
    assert status_of(1.0, 0.6) == "weakened"
    assert {status_of(1.0, level) for level in (0.8, 1.0, 1.25)} == {PRESENT}


def test_written_checkpoint_is_what_the_lineage_says(lineage, tmp_path):
    write_checkpoint(lineage, 2, tmp_path / "v2")
    manifest = json.loads((tmp_path / "v2" / "manifest.json").read_text())
    assert manifest["format"] == "featurewatch-activations/1"
    assert manifest["positions"] == 6000
    source = manifest["hook_points"]["resid_post.1"]
    parts = [load_file(tmp_path / "v2" / shard)["activations"] for shard in source["shards"]]
    np.testing.assert_array_equal(np.concatenate(parts), lineage.activations(2))
    assert source["d_model"] == parts[0].shape[1] == 48
    document = load_file(tmp_path / "v2" / manifest["documents"])["document"]
    np.testing.assert_array_equal(document, lineage.document)


@pytest.mark.parametrize("checkpoint", [0, 5])
def test_checkpoints_outside_the_lineage_are_refused(lineage, checkpoint):
    with pytest.raises(ValueError, match="checkpoint"):
        lineage.activations(checkpoint)
