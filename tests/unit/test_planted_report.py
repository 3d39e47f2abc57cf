"""The page of planted results: means over seeds, a column for each measure, nothing of lineages of another shape."""

from dataclasses import asdict

import numpy as np
import pytest

from benchmarks.planted import keep
from benchmarks.planted_calibration import coverage, q_values
from benchmarks.planted_data import SCENARIOS, make_lineage, scenario
from benchmarks.planted_report import WHAT, page, summary
from benchmarks.planted_score import Matching, score, successors_named
from benchmarks.planted_shape import UNBORN


@pytest.fixture(scope="module")
def results():
    """Of two seeds: one with right answers, one that calls every feature present, on a small lineage."""
    found = []
    for seed in (1, 2):
        lineage = make_lineage(seed, scenario("kinds", small=True))
        n = lineage.shape.n_planted
        matching = Matching(np.arange(n), np.ones(n), {})
        verdicts, rows = {}, {}
        for checkpoint in range(2, lineage.shape.n_checkpoints + 1):
            truth = lineage.truth(checkpoint).against_parent
            ratios = lineage.ratios(checkpoint, checkpoint - 1)
            known = {i: status for i, status in enumerate(truth) if status != UNBORN}
            verdicts[checkpoint] = known if seed == 1 else dict.fromkeys(known, "present")
            rows[checkpoint] = {
                i: {"projection_ratio": r, "projection_ratio_ci": [r - 0.1, r + 0.1], "q_value": 0.9}
                for i, r in enumerate(ratios.tolist())
            }
        scores = score(lineage, verdicts, matching)
        result = {"seed": seed, "scenario": "kinds", "shape": asdict(scenario("kinds")), "id_stability": 1.0} | scores
        result |= {"successors_named": successors_named(lineage, {}, matching)}
        result |= {"coverage": coverage(lineage, rows, matching), "q_values": q_values(lineage, rows, matching, 0.05)}
        found.append(result | ({"baselines": {"norm bins": scores}} if seed == 2 else {}))
    return found


def test_a_summary_holds_means_and_the_worst(results):
    found = summary(results)["kinds"]
    assert found["seeds"] == [1, 2]
    assert found["macro-F1"] == pytest.approx((1 + results[1]["macro_f1"]) / 2)
    assert found["lowest macro-F1"] == results[1]["macro_f1"] < 0.3
    assert found["suppressed"] == 0.5 and found["cover"] == 1
    assert "baselines" not in found  # one of the two lineages has none
    assert summary(results[1:])["kinds"]["baselines"]["norm bins"]["macro-F1"] == results[1]["macro_f1"]


def test_the_page_has_a_row_for_each_scenario_and_method(results):
    text = page(results)
    service = next(line for line in text.splitlines() if line.startswith("| `kinds` | 1, 2 |"))
    assert f"{(1 + results[1]['macro_f1']) / 2:.3f}" in service
    assert sum(line.startswith("| `kinds` | featurewatch | 2 |") for line in text.splitlines()) == 1
    assert sum(line.startswith("| `kinds` | norm bins | 2 |") for line in text.splitlines()) == 1
    tables = [line.count("|") for line in text.splitlines() if line.startswith("| `kinds`")]
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120
    heads = [line.count("|") for line in text.splitlines() if line.startswith("| scenario")]
    assert tables == [heads[0], heads[1], heads[1]]


def test_lineages_of_another_shape_are_left_out(results):
    other = results[0] | {"shape": asdict(scenario("kinds", small=True))}
    assert "| `kinds` |" not in page([other])


def test_every_scenario_is_described():
    assert list(WHAT) == list(SCENARIOS)


def test_results_are_kept_once_for_each_seed(results, tmp_path):
    for result in (*results, results[1] | {"macro_f1": 0.5, "quality": {}}):
        keep(result, tmp_path / "found.json")
    text = (tmp_path / "found.json").read_text()
    assert text.count('"scenario": "kinds"') == 2 and '"macro_f1": 0.5' in text and "quality" not in text
