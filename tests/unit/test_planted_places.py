"""Events that change where features are active: what is planted, what is true of it, and what each mistake costs."""

from dataclasses import asdict

import numpy as np
import pytest

from benchmarks.planted_calibration import coverage, place_coverage
from benchmarks.planted_data import make_lineage
from benchmarks.planted_places import FIGURES, expected_figures, plant_places, planted_figures
from benchmarks.planted_places_score import score_places
from benchmarks.planted_report import page, summary
from benchmarks.planted_score import Matching, ratio_errors, score, successors_named
from benchmarks.planted_shape import EVENT_PLACES, Event, scenario

N, CHECKPOINTS = 60, range(1, 5)
SHAPE = {
    "n_checkpoints": 4, "n_positions": 20_000, "document_length": 40, "width": 64, "n_planted": N,
    "lowest_rate": 0.005, "n_children": 8, "n_removed": 3, "n_born": 3, "n_suppressed": 3,
}  # fmt: skip
LATE = {
    "n_broadened": 4, "n_narrowed": 6, "n_displaced": 4, "n_trigger": 3, "n_weakened": 3, "n_strengthened": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def lineage():
    return make_lineage(11, **SHAPE, **LATE)


@pytest.fixture(scope="module")
def dense(lineage):
    """True magnitudes by checkpoint, [n_positions, n_planted]."""
    return {checkpoint: lineage.codes_at(checkpoint).toarray() for checkpoint in CHECKPOINTS}


def of(lineage, *kinds):
    return [event for event in lineage.events if event.kind in kinds]


def columns(lineage, dense):
    """Each event that changes places, with its feature's magnitudes before and after."""
    for event in of(lineage, *EVENT_PLACES):
        yield event, dense[event.checkpoint - 1][:, event.feature], dense[event.checkpoint][:, event.feature]


def test_events_happen_to_features_of_their_own_that_are_active_often_enough(lineage):
    late = of(lineage, *EVENT_PLACES, "weakened", "strengthened")
    assert len(late) == sum(LATE.values())
    assert len({event.feature for event in lineage.events}) == len(lineage.events)
    assert {event.checkpoint for event in late} == {2, 3, 4}
    for event in late:
        at = np.flatnonzero(lineage.codes[:, [event.feature]].toarray())
        assert 60 <= len(at) <= 0.05 * 20_000 and len(np.unique(lineage.document[at])) >= 10


def test_codes_change_at_the_onset_and_for_the_features_of_the_events_alone(lineage, dense):
    np.testing.assert_array_equal(dense[1], lineage.codes.toarray())
    for checkpoint in CHECKPOINTS[1:]:
        changed = np.flatnonzero((dense[checkpoint] != dense[checkpoint - 1]).any(0))
        assert changed.tolist() == sorted(e.feature for e in of(lineage, *EVENT_PLACES) if e.checkpoint == checkpoint)


def test_each_kind_moves_its_feature_as_it_says(lineage, dense):
    documents = lineage.document[-1] + 1
    for event, before, now in columns(lineage, dense):
        kept, new = (before > 0) & (now > 0), (before == 0) & (now > 0)
        np.testing.assert_array_equal(now[kept], before[kept])
        rate = (now > 0).sum() / (before > 0).sum()
        if event.kind == "broadened":
            assert kept.sum() == (before > 0).sum() and 2.5 < rate < 3.5
            assert set(now[new]) <= set(before[before > 0])
            spread = len(np.unique(lineage.document[new]))
            assert spread > 0.8 * documents * (1 - np.exp(-new.sum() / documents))
        elif event.kind == "narrowed":
            assert not new.any() and 0.2 < rate < 0.47
        elif event.kind == "displaced":
            assert not kept.any() and rate == 1
            np.testing.assert_array_equal(np.sort(now[now > 0]), np.sort(before[before > 0]))
        else:
            filled = np.unique(lineage.document[new])
            assert len(filled) == round(0.03 * documents)
            assert (now[np.isin(lineage.document, filled)] > 0).all()
            assert set(now[new]) == {np.median(before[before > 0])}


def test_a_widespread_feature_is_narrowed_by_whole_documents_and_another_by_positions(lineage, dense):
    whole = {}
    for event, before, now in columns(lineage, dense):
        if event.kind == "narrowed":
            active, left = (np.unique(lineage.document[column > 0]) for column in (before, (before > 0) & (now == 0)))
            still = np.unique(lineage.document[now > 0])
            whole.setdefault(len(active) >= 150, set()).add(not set(left) & set(still))
    assert whole == {True: {True}, False: {False}}


def test_children_do_not_follow_their_parents(lineage, dense):
    moved = {event.feature for event in of(lineage, *EVENT_PLACES)}
    followed = [(child, parent) for child, parent in lineage.children if parent in moved and child not in moved]
    assert followed
    for child, parent in followed:
        np.testing.assert_array_equal(dense[4][:, child], dense[1][:, child])
        assert not (dense[1][:, child] > 0)[dense[1][:, parent] == 0].any()


def test_an_oracle_that_knows_the_new_places_finds_every_level_in_the_activations(lineage, dense):
    for checkpoint in CHECKPOINTS:
        x = lineage.activations(checkpoint).astype(np.float64)
        codes = dense[checkpoint].astype(np.float64)
        rows = np.linalg.lstsq(codes - codes.mean(0), x - x.mean(0), rcond=None)[0]
        along, levels = (rows * lineage.directions(checkpoint)).sum(1), lineage.levels(checkpoint)
        np.testing.assert_allclose(along / np.median(along[levels == 1]), levels, atol=0.1)
    assert {event.level for event in of(lineage, "weakened")} == {0.65}
    assert {event.level for event in of(lineage, "strengthened")} == {1.5}


def test_late_events_leave_the_rest_of_the_lineage_as_it_is(lineage):
    plain, again = make_lineage(11, **SHAPE), make_lineage(11, **SHAPE, **LATE)
    np.testing.assert_array_equal(plain.codes.toarray(), lineage.codes.toarray())
    assert lineage.events[: len(plain.events)] == plain.events
    assert again.events == lineage.events
    np.testing.assert_array_equal(again.activations(4), lineage.activations(4))
    np.testing.assert_array_equal(plain.activations(1), lineage.activations(1))
    fewer = make_lineage(11, **SHAPE, **(LATE | {"n_trigger": 0}))
    for event in of(fewer, "broadened", "narrowed", "displaced"):
        np.testing.assert_array_equal(fewer.moved[event.feature][0], lineage.moved[event.feature][0])


def test_too_few_features_that_are_active_often_enough_are_refused():
    with pytest.raises(ValueError, match="active often enough"):
        make_lineage(1, n_checkpoints=2, n_positions=2000, width=8, n_planted=80, n_trigger=5)


def test_truth_before_at_and_after_the_onset(lineage):
    """(status, places) against the parent, then against the first: before the onset, at it, after it."""
    same, none = ("present", "same"), ("absent", None)
    expected = {
        "weakened": ((same, same), (("weakened", "same"),) * 2, (same, ("weakened", "same"))),
        "strengthened": ((same, same), (("strengthened", "same"),) * 2, (same, ("strengthened", "same"))),
        "suppressed": ((same, same), (("suppressed", None),) * 2, (same, ("suppressed", None))),
        "removed": ((same, same), (none, none), (none, none)),
        "born": ((("unborn", None),) * 2, (("emerged", None),) * 2, (same, ("emerged", None))),
    }
    for kind, place in EVENT_PLACES.items():
        expected[kind] = ((same, same), (("present", place),) * 2, (same, ("present", place)))
    for event in lineage.events:
        for checkpoint in CHECKPOINTS[1:]:
            truth, i = lineage.truth(checkpoint), event.feature
            parent = truth.against_parent[i], truth.places_against_parent[i]
            first = truth.against_first[i], truth.places_against_first[i]
            when = int(np.sign(checkpoint - event.checkpoint)) + 1
            assert (parent, first) == expected[event.kind][when], (event, checkpoint)
    touched = {event.feature for event in lineage.events}
    assert {lineage.truth(4).places_against_parent[i] for i in range(N) if i not in touched} == {"same"}


def test_true_figures_are_those_of_the_planted_magnitudes(lineage, dense):
    for checkpoint in CHECKPOINTS[1:]:
        before, now = (dense[c] * lineage.levels(c) for c in (checkpoint - 1, checkpoint))
        mass, truth = before.sum(0), lineage.truth(checkpoint)
        written = mass > 0
        assert [value is not None for value in truth.gained_share] == written.tolist()
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = {
                "gained_share": np.where(before == 0, now, 0).sum(0) / mass,
                "lost_share": np.where(now == 0, before, 0).sum(0) / mass,
                "firing_rate_ratio": (now > 0).sum(0) / (before > 0).sum(0),
            }
        for name in FIGURES:
            found = np.array(getattr(truth, name), dtype=float)
            np.testing.assert_allclose(found[written], expected[name][written], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("kind", EVENT_PLACES)
def test_expected_figures_are_means_over_draws(lineage, kind):
    feature = of(lineage, "narrowed")[0].feature
    at = np.flatnonzero(lineage.codes[:, [feature]].toarray())
    before = at, lineage.codes[:, [feature]].toarray().ravel()[at]
    events = [Event(feature, kind, 2, 1.0)]
    draws = [
        planted_figures(before, plant_places(lineage.codes, lineage.document, events, seed)[feature])
        for seed in range(150)
    ]
    expected = np.array(expected_figures(kind, before, lineage.document))
    error = np.std(draws, axis=0) / np.sqrt(len(draws))
    assert (np.abs(np.mean(draws, axis=0) - expected) <= 4 * error + 1e-6).all()


@pytest.fixture
def matching():
    """Planted feature i is latent 100 + i."""
    return Matching(np.arange(N) + 100, np.ones(N), {})


@pytest.fixture
def answers(lineage):
    return {
        checkpoint: {100 + i: place for i, place in enumerate(lineage.truth(checkpoint).places_against_parent)}
        for checkpoint in CHECKPOINTS[1:]
    }


@pytest.fixture
def statuses(lineage):
    return {
        checkpoint: {
            100 + i: status for i, status in enumerate(lineage.truth(checkpoint).against_parent) if status != "unborn"
        }
        for checkpoint in CHECKPOINTS[1:]
    }


def test_right_places_score_one(lineage, matching, answers):
    result = score_places(lineage, answers, matching)
    assert result["macro_f1"] == 1 and set(result["f1"].values()) == {1.0}
    assert result["found_by_kind"] == dict.fromkeys(("broadened", "narrowed", "displaced", "trigger"), 1.0)
    assert result["unchanged_flagged"] == 0 and result["confusion"] == {}
    assert {place: found["support"] for place, found in result["classes"].items() if place != "same"} == {
        "broadened": 7, "narrowed": 6, "displaced": 4,
    }  # fmt: skip


def test_results_without_places_have_no_score(lineage, matching, answers):
    older = {checkpoint: dict.fromkeys(part) for checkpoint, part in answers.items()}
    assert score_places(lineage, older, matching) is None


def test_each_mistake_costs_its_due(lineage, matching, answers):
    trigger, narrowed = of(lineage, "trigger")[0], of(lineage, "narrowed")[0]
    answers[trigger.checkpoint][100 + trigger.feature] = "same"
    answers[narrowed.checkpoint][100 + narrowed.feature] = "indeterminate"
    untouched = next(i for i in range(N) if i not in {event.feature for event in lineage.events})
    answers[3][100 + untouched] = "displaced"
    result = score_places(lineage, answers, matching)
    assert result["confusion"] == {"broadened -> same": 1, "narrowed -> indeterminate": 1, "same -> displaced": 1}
    assert result["found_by_kind"]["trigger"] == pytest.approx(2 / 3)
    assert result["classes"]["narrowed"]["recall"] == pytest.approx(5 / 6)
    assert result["classes"]["displaced"]["precision"] == pytest.approx(4 / 5)
    assert result["unchanged_flagged"] == pytest.approx(1 / result["unchanged"])


def test_a_change_of_what_has_no_places_is_a_false_positive(lineage, matching, answers):
    suppressed, removed = of(lineage, "suppressed")[0], of(lineage, "removed")[0]
    answers[suppressed.checkpoint][100 + suppressed.feature] = "same"
    answers[removed.checkpoint][100 + removed.feature] = "indeterminate"
    assert score_places(lineage, answers, matching)["macro_f1"] == 1
    answers[suppressed.checkpoint][100 + suppressed.feature] = "narrowed"
    result = score_places(lineage, answers, matching)
    assert result["confusion"] == {"undefined -> narrowed": 1} and result["unchanged_flagged"] == 0
    assert result["classes"]["narrowed"]["precision"] == pytest.approx(6 / 7)


def test_missed_features_and_second_latents(lineage, matching, answers):
    broadened = of(lineage, "broadened")[0]
    matching.follows.update({600: broadened.feature, 601: broadened.feature})
    answers[broadened.checkpoint] |= {600: "broadened", 601: "same"}
    assert score_places(lineage, answers, matching)["macro_f1"] == 1
    answers[broadened.checkpoint] |= {600: "displaced", 602: "broadened"}
    matching.latent[broadened.feature] = -1
    del answers[broadened.checkpoint][100 + broadened.feature]
    result = score_places(lineage, answers, matching)
    wrong = {pair: n for pair, n in result["confusion"].items() if not pair.endswith("missed")}
    assert wrong == {"nothing -> displaced": 1, "nothing -> broadened": 1}
    assert result["found_by_kind"]["broadened"] == pytest.approx(3 / 4)
    assert result["unchanged_flagged"] == 0


def test_features_in_new_places_are_present_and_have_no_onset_of_a_status(lineage, matching, statuses):
    result = score(lineage, statuses, matching)
    assert result["macro_f1"] == result["onset_accuracy"] == 1
    assert set(result["onset_by_kind"]) == {"suppressed", "removed", "born", "weakened", "strengthened"}
    displaced = of(lineage, "displaced")[0]
    statuses[displaced.checkpoint][100 + displaced.feature] = "absent"
    assert score(lineage, statuses, matching)["confusion"] == {"present -> absent": 1}


def test_a_service_without_graded_statuses_is_right_to_say_present(lineage, matching, statuses):
    graded = {"weakened": "present", "strengthened": "present"}
    older = {c: {n: graded.get(status, status) for n, status in part.items()} for c, part in statuses.items()}
    found = score(lineage, older, matching, graded=False)
    assert found["macro_f1"] == found["onset_accuracy"] == 1 and "weakened" not in found["onset_by_kind"]
    strict = score(lineage, older, matching)
    assert strict["confusion"] == {"weakened -> present": 3, "strengthened -> present": 3}
    assert strict["macro_f1_simple"] == 1 > strict["macro_f1"]


@pytest.fixture
def rows(lineage):
    """Rows that are right, with intervals of 0.1 to either side of what is expected."""
    found = {}
    for checkpoint in CHECKPOINTS[1:]:
        ratios = lineage.ratios(checkpoint, checkpoint - 1).tolist()
        figures = lineage.figures(checkpoint, checkpoint - 1, expected=True)
        found[checkpoint] = {
            100 + i: {"projection_ratio": ratios[i], "projection_ratio_ci": [ratios[i] - 0.1, ratios[i] + 0.1]}
            | {name: values[i] for name, values in figures.items()}
            | {f"{name}_ci": [values[i] - 0.1, values[i] + 0.1] for name, values in figures.items()}
            for i in range(N)
        }
    return found


def test_intervals_of_places_cover_what_is_expected(lineage, matching, rows):
    found = place_coverage(lineage, rows, matching)
    assert set(found) == set(FIGURES)
    for figure in FIGURES:
        assert set(found[figure]) == {"all", "same", "broadened", "narrowed", "displaced", "without"}
        assert found[figure]["all"]["covered"] == 1 and found[figure]["without"] == 0
        assert found[figure]["same"]["covered_planted"] == found[figure]["displaced"]["covered_planted"] == 1
    for event in of(lineage, "displaced")[:1]:
        row = rows[event.checkpoint][100 + event.feature]
        row |= {"gained_share": 0.7, "gained_share_ci": [0.6, 0.8], "lost_share": None, "lost_share_ci": None}
    found = place_coverage(lineage, rows, matching)
    assert found["gained_share"]["displaced"]["covered"] == pytest.approx(3 / 4)
    assert found["gained_share"]["displaced"]["bias"] == pytest.approx(-0.3 / 4)
    assert found["lost_share"]["displaced"]["n"] == 3 and found["lost_share"]["without"] > 0
    assert found["firing_rate_ratio"]["all"]["covered"] == 1


def test_rows_of_an_older_service_have_no_coverage_of_places(lineage, matching, rows):
    older = {c: {n: {"projection_ratio": 1.0, "projection_ratio_ci": None} for n in part} for c, part in rows.items()}
    assert place_coverage(lineage, older, matching) is None


def test_narrowed_and_displaced_features_do_not_count_for_the_projection_ratio(lineage, matching, rows):
    for event in of(lineage, "narrowed", "displaced"):
        for checkpoint in range(event.checkpoint, 5):
            row = rows[checkpoint][100 + event.feature]
            row |= {"projection_ratio": 0.0, "projection_ratio_ci": [-0.1, 0.1]}
    assert coverage(lineage, rows, matching)["all"]["covered"] == 1
    ratios = {c: {n: row["projection_ratio"] for n, row in part.items()} for c, part in rows.items()}
    assert ratio_errors(lineage, ratios, matching)["largest"] == 0


def test_the_page_has_a_table_of_places_for_results_that_have_them(lineage, matching, answers, statuses, rows):
    older = score(lineage, statuses, matching) | {
        "seed": 1, "scenario": "all", "shape": asdict(scenario("all")), "id_stability": 1.0,
        "successors_named": successors_named(lineage, {}, matching), "coverage": coverage(lineage, rows, matching),
        "q_values": {"false_share": 0.0, "unchanged_share": 0.0},
    }  # fmt: skip
    newer = older | {
        "seed": 2,
        "places": score_places(lineage, answers, matching),
        "place_coverage": place_coverage(lineage, rows, matching),
    }
    assert "## Where features are active" not in page([older | {"places": None, "place_coverage": None}])
    text = page([older, newer])
    table = text.split("## Where features are active")[1].split("\n\n")[1].splitlines()
    assert [line.split(" | ")[:3] for line in table[2:]] == [["| `all`", "2", "1.000"]]
    assert len({line.count("|") for line in table}) == 1
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120
    assert summary([older, newer])["all"]["places"]["trigger found"] == 1
    assert summary([older])["all"]["places"]["macro-F1"] is None
