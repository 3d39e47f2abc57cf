"""What scenarios plant beyond the plain events, measured in what is written: successors, children, sinks, bases."""

import json
from collections import Counter

import numpy as np
import pytest

from benchmarks.planted_data import HOOK_POINT, WIDER_HOOK_POINT, make_lineage, write_checkpoint
from benchmarks.planted_shape import (
    ABSENT,
    AMPLIFIED,
    EMERGED,
    PRESENT,
    RELOCATED,
    REPLACED,
    SCENARIOS,
    SUPPRESSED,
    UNBORN,
    Shape,
    scenario,
)

SMALL = {"n_positions": 8000, "width": 96, "n_planted": 90, "lowest_rate": 0.01, "scale_wander": 0.3}
KINDS = {
    "n_suppressed": 3, "n_removed": 3, "n_born": 3, "n_amplified": 5, "n_relocated": 5, "n_replaced": 6, "n_split": 3,
    "n_merged": 3, "n_exclusive": 5,
}  # fmt: skip
LATE = {"broadened", "narrowed", "displaced", "trigger", "weakened", "strengthened"}


@pytest.fixture(scope="module")
def lineage():
    return make_lineage(7, **SMALL, **KINDS, n_children=10, sink_share=0.3, rotate_degrees=6.0)


def of(lineage, kind):
    return [event for event in lineage.events if event.kind == kind]


def fires(lineage, feature):
    return set(np.flatnonzero(lineage.codes[:, [feature]].toarray().ravel()).tolist())


def solved(lineage, checkpoint):
    """Least squares on the true codes without the sinks, the scale taken out: [n_planted, width]."""
    keep = np.setdiff1d(np.arange(len(lineage.document)), lineage.sinks)
    x = lineage.activations(checkpoint)[keep].astype(np.float64)
    codes = lineage.codes.toarray()[keep].astype(np.float64)
    rows = np.linalg.lstsq(codes - codes.mean(0), x - x.mean(0), rcond=None)[0]
    untouched = sorted(set(range(lineage.shape.n_planted)) - {e.feature for e in lineage.events})
    return rows / np.median(np.linalg.norm(rows[untouched], axis=1))


def test_every_kind_is_there_once_and_spread_over_the_checkpoints(lineage):
    counts = Counter(event.kind for event in lineage.events)
    ended = sum(event.checkpoint < 6 for event in of(lineage, "exclusive"))
    assert counts == {
        "suppressed": 3, "removed": 3 + ended, "born": 3, "amplified": 5, "relocated": 5, "replaced": 6, "split": 3,
        "merged": 6, "exclusive": 5, "successor": 6 + 6 + 3,
    }  # fmt: skip
    assert {event.checkpoint for event in of(lineage, "replaced")} == {2, 3, 4, 5, 6}
    births = [e.feature for e in lineage.events if not (e.kind == "removed" and e.checkpoint > 2)]
    assert max(Counter(births).values()) == 1


def test_successors_fire_where_they_should(lineage):
    for event in of(lineage, "replaced"):
        old, new = fires(lineage, event.feature), fires(lineage, event.successors[0])
        assert 0.5 < len(old & new) / len(old) < 0.97, event
        assert 0.05 < len(new - old) / len(new) < 0.25
    for event in of(lineage, "split"):
        old, first, second = (fires(lineage, i) for i in (event.feature, *event.successors))
        assert len(old & (first | second)) / len(old) > 0.8
        assert len(first & second & old) / len(old) < 0.1
        assert min(len(old & first), len(old & second)) / len(old) > 0.2
    pairs = Counter(event.successors for event in of(lineage, "merged"))
    assert set(pairs.values()) == {2}
    for event in of(lineage, "merged"):
        old, new = fires(lineage, event.feature), fires(lineage, event.successors[0])
        assert 0.5 < len(old & new) / len(old) < 0.97


def test_successors_are_of_comparable_size_but_have_magnitudes_of_their_own(lineage):
    codes = lineage.codes.toarray()
    for event in of(lineage, "replaced"):
        old, new = codes[:, event.feature], codes[:, event.successors[0]]
        both = (old > 0) & (new > 0)
        assert 0.4 < np.median(new[new > 0]) / np.median(old[old > 0]) < 2.5
        # Under independence the standard error is about 1 / sqrt(n).
        assert abs(np.corrcoef(np.log(old[both]), np.log(new[both]))[0, 1]) < 5 / np.sqrt(both.sum())


def test_what_is_written_follows_the_events(lineage):
    for checkpoint in range(1, 7):
        rows, levels = solved(lineage, checkpoint), lineage.levels(checkpoint)
        np.testing.assert_allclose((rows * lineage.directions(checkpoint)).sum(1), levels, atol=0.12)
    level = {event.kind: {e.level for e in of(lineage, event.kind)} for event in lineage.events}
    assert level["replaced"] == level["split"] == level["merged"] == {0.0}
    assert all(2.5 <= each <= 4 for each in level["amplified"])


def test_a_relocated_feature_keeps_its_size_and_turns_by_a_right_angle(lineage):
    for event in of(lineage, "relocated"):
        before, now = solved(lineage, event.checkpoint - 1), solved(lineage, event.checkpoint)
        old, new = before[event.feature], now[event.feature]
        assert np.linalg.norm(new) / np.linalg.norm(old) == pytest.approx(1, abs=0.12)
        assert abs(lineage.ratios(event.checkpoint, event.checkpoint - 1)[event.feature]) < 1e-9
        if event.checkpoint < 6:  # and stays there
            assert lineage.ratios(event.checkpoint + 1, event.checkpoint)[event.feature] > 0.95


def test_truth_of_every_kind(lineage):
    """(against the parent, against the first): before the onset, at it, after it."""
    there, gone = (PRESENT, PRESENT), (UNBORN, UNBORN)
    expected = {
        "suppressed": (there, (SUPPRESSED, SUPPRESSED), (PRESENT, SUPPRESSED)),
        "amplified": (there, (AMPLIFIED, AMPLIFIED), (PRESENT, AMPLIFIED)),
        "removed": (there, (ABSENT, ABSENT), (ABSENT, ABSENT)),
        "relocated": (there, (RELOCATED, RELOCATED), (PRESENT, RELOCATED)),
        "born": (gone, (EMERGED, EMERGED), (PRESENT, EMERGED)),
        "exclusive": (gone, (EMERGED, EMERGED), (ABSENT, ABSENT)),
    }
    for kind in ("replaced", "split", "merged"):
        expected[kind] = (there, (REPLACED, REPLACED), (ABSENT, REPLACED))
    expected["successor"] = expected["born"]
    short_lived = {event.feature for event in of(lineage, "exclusive")}
    for event in lineage.events:
        if event.kind == "removed" and event.feature in short_lived:
            continue
        for checkpoint in range(2, 7):
            truth = lineage.truth(checkpoint)
            found = truth.against_parent[event.feature], truth.against_first[event.feature]
            assert found == expected[event.kind][int(np.sign(checkpoint - event.checkpoint)) + 1], (event, checkpoint)


def test_exclusive_features_are_written_in_one_checkpoint_at_their_rate(lineage):
    for event in of(lineage, "exclusive"):
        written = [lineage.levels(c)[event.feature] for c in range(1, 7)]
        assert written == [float(c == event.checkpoint) for c in range(1, 7)]
        assert len(fires(lineage, event.feature)) / 8000 == pytest.approx(0.005, rel=0.5)


def test_children_fire_only_where_their_parent_does(lineage):
    assert len(lineage.children) == len({child for child, _ in lineage.children}) == 10
    assert not {child for child, _ in lineage.children} & {parent for _, parent in lineage.children}
    for child, parent in lineage.children:
        inside, outside = fires(lineage, child), fires(lineage, parent)
        assert inside <= outside
        assert 0.1 < len(inside) / len(outside) < 0.75


def test_sinks_are_huge_and_share_one_direction_at_the_second_token(lineage):
    starts = np.flatnonzero(np.diff(lineage.document, prepend=-1))
    assert set(lineage.sinks.tolist()) <= set((starts + 1).tolist())
    assert 0.15 < len(lineage.sinks) / len(starts) < 0.45
    x = lineage.activations(4)
    sizes = np.linalg.norm(x, axis=1) / np.median(np.linalg.norm(x, axis=1))
    assert sizes[lineage.sinks].min() > 28 and sizes[lineage.sinks].max() < 52
    assert np.delete(sizes, lineage.sinks).max() < 6
    unit = x[lineage.sinks] / np.linalg.norm(x[lineage.sinks], axis=1, keepdims=True)
    assert (unit @ unit.T).min() > 0.98


def test_a_common_rotation_turns_everything_by_its_angle():
    lineage = make_lineage(3, **SMALL, rotate_degrees=10.0, turn_degrees=0.0, n_suppressed=1, n_removed=1, n_born=1)
    for checkpoint in (2, 5):
        before, now = lineage.directions(checkpoint - 1), lineage.directions(checkpoint)
        np.testing.assert_allclose(np.rad2deg(np.arccos((before * now).sum(1))), 10, atol=1e-6)
        np.testing.assert_allclose(now @ now.T, before @ before.T, atol=1e-12)  # one rotation, not many


def test_a_replaced_basis_keeps_angles_between_features_and_no_direction():
    lineage = make_lineage(3, **SMALL, basis_replaced_at=4, turn_degrees=0.0, n_suppressed=1, n_removed=1, n_born=1)
    np.testing.assert_array_equal(lineage.directions(3), lineage.directions(1))
    before, now = lineage.directions(3), lineage.directions(4)
    assert abs(np.median((before * now).sum(1))) < 0.1
    np.testing.assert_allclose(now @ now.T, before @ before.T, atol=1e-12)
    np.testing.assert_array_equal(lineage.directions(6), now)
    along = (solved(lineage, 4) * now).sum(1)
    np.testing.assert_allclose(along, lineage.levels(4), atol=0.12)


def test_a_wider_checkpoint_is_read_at_a_hook_point_of_its_own(tmp_path):
    """Under a name that the family knows, another width is an error of the precomputed activations."""
    lineage = make_lineage(3, **SMALL, wider_at=3, wider_width=128, n_suppressed=1, n_removed=1, n_born=1)
    names = [lineage.hook_point(checkpoint) for checkpoint in (1, 2, 3)]
    assert names == [HOOK_POINT, HOOK_POINT, WIDER_HOOK_POINT]
    write_checkpoint(lineage, 3, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["hook_points"][WIDER_HOOK_POINT]["d_model"] == 128
    assert list(manifest["hook_points"]) == [WIDER_HOOK_POINT]


def test_a_wider_checkpoint_has_noise_in_all_its_dimensions():
    lineage = make_lineage(
        3, **SMALL, wider_at=3, wider_width=128, directed_noise=0.0, n_suppressed=1, n_removed=1, n_born=1
    )
    assert [lineage.width(c) for c in range(1, 7)] == [96, 96, 128, 128, 128, 128]
    x, directions = lineage.activations(3), lineage.directions(3)
    assert x.shape == (8000, 128) and directions.shape == (90, 128)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    # 96 dimensions hold all features, the other 32 nothing but noise (times the checkpoint's scale).
    outside = np.linalg.svd(directions)[2][90:]
    scale = np.linalg.norm(np.linalg.lstsq(lineage.codes.toarray(), x - x.mean(0), rcond=None)[0], axis=1)
    spread = ((x - x.mean(0)) @ outside.T).std(0) / np.median(scale[lineage.levels(3) == 1])
    assert spread == pytest.approx(np.full(38, 0.06), rel=0.15)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios_are_shapes_at_both_sizes(name):
    full, small = scenario(name), scenario(name, small=True, n_checkpoints=7)
    assert isinstance(full, Shape)
    assert small.n_planted == full.n_planted / 4 and small.n_checkpoints == 7
    kinds = {event.kind for event in make_lineage(0, small).events}
    if name == "places":
        assert kinds == LATE and small.n_broadened == 4
        return
    assert 0 < small.n_suppressed <= full.n_suppressed / 3
    expected = {"suppressed", "removed", "born"} if name == "plain" else {
        "suppressed", "removed", "born", "amplified", "relocated", "replaced", "split", "merged", "exclusive",
        "successor",
    }  # fmt: skip
    assert kinds == (expected | LATE if name == "all" else expected)


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match="need"):
        Shape(n_planted=60)
    with pytest.raises(ValueError, match="wider_width"):
        Shape(wider_at=3, wider_width=64)
    with pytest.raises(ValueError, match="no scenario"):
        scenario("nothing")
