"""The parts of `benchmarks.fit` that need no public trainers: data, turns, figures, report."""

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from benchmarks import fit, fit_report
from benchmarks.fit_data import Planted, draw_code, write_activations
from benchmarks.fit_rounds import FLOOR, OURS, OURS_FLOAT32, Results, run_rounds
from benchmarks.peers.participant import Job


def trainer(ms: float, fvu: list[float], **other: object) -> dict:
    ratio = {"median": ms / 10, "low": ms / 10 - 1, "high": ms / 10 + 1}
    over = {"median": ms / 8, "low": ms / 8, "high": ms / 8}
    return {
        "package": "p 1", "what": "SAE", "rate": 1e-3, "ms": ms, "positions_per_second": 2048e3 / ms, "memory": 10.0,
        "ours_over_it": ratio, "step_over_product": over, "fvu": fvu, "l0": 32.0, "dead": 0.0, **other,
    }  # fmt: skip


@pytest.fixture
def result() -> dict:
    configuration = fit_report.DEFAULT | {"threads": 2, "device": "cpu", "precision": "float32", "rounds": 2, "seed": 0}
    return {
        "configuration": configuration,
        "machine": {"processor": "a <fast> one", "cores": 2, "gpu": None, "torch": "2"},
        "trainers": {
            OURS: trainer(10.0, [0.10, 0.12]),
            "dictionary-learning": trainer(60.0, [0.2, 0.3]),
            "eai-sparsify": trainer(24.0, [0.11, 0.13]),
        },
        "product": {"ms": 8.0, "rounds_ms": [8.0, 8.0]},
    }


def test_activations_are_normalised_and_sparse(tmp_path: Path) -> None:
    planted = Planted((16, 8), features=64, active=3.0, seed=5)
    write_activations(planted, 9000, tmp_path / "x.npy")
    x = torch.from_numpy(np.load(tmp_path / "x.npy"))
    assert x.shape == (9000, 24)
    assert x.dtype == torch.float32
    assert x.mean(0).abs().max() < 1e-4
    for part, d in zip(x.split([16, 8], 1), (16, 8), strict=True):
        assert float(part.square().sum(1).mean()) == pytest.approx(d, rel=1e-4)
    write_activations(planted, 9000, tmp_path / "again.npy")
    assert np.array_equal(np.load(tmp_path / "again.npy"), x.numpy())


def test_planted_codes_have_the_stated_rate_and_a_heavy_tail() -> None:
    code = draw_code(Planted((8,), features=200, active=5.0), 20_000, np.random.default_rng(1))
    assert code.nnz / 20_000 == pytest.approx(5.0, rel=0.05)
    rates = np.sort(code.getnnz(axis=0))
    assert rates[-1] > 50 * rates[0]
    assert np.median(code.data) == pytest.approx(1.0, rel=0.05)
    assert code.data.max() > 4 * np.median(code.data)


def test_noise_is_the_share_of_power_that_was_asked_for(tmp_path: Path) -> None:
    """The same draw with and without noise, in units of the signal: what differs is the noise."""
    for noise in (0.0, 0.25):
        write_activations(Planted((64,), 512, 4.0, noise=noise), 4000, tmp_path / f"{noise}.npy")
    clean, noisy = (np.load(tmp_path / f"{noise}.npy").astype(np.float64) for noise in (0.0, 0.25))
    slope = (clean * noisy).sum() / np.square(clean).sum()
    assert np.square(noisy / slope - clean).sum() / np.square(clean).sum() == pytest.approx(0.25, rel=0.1)


def test_trainers_take_turns_and_answer_for_what_they_learnt(tmp_path: Path) -> None:
    """Our fit and the product alone, in processes of their own: every step once, and a code that explains something."""
    job = Job(str(tmp_path), (16, 16), 64, 4, 256, 60, 4096, 10_000, 0, 1, "cpu")
    write_activations(Planted(job.widths, 64, 2.5), 4096 + 512, tmp_path / "activations.npy")
    rows = torch.randint(4096, (job.steps, job.batch), generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "rows.npy", rows.numpy())
    said: list[str] = []
    results = run_rounds(job, [], 3, Path(sys.executable), said.append)
    assert {name: len(seconds) for name, seconds in results.seconds.items()} == {OURS: 3, FLOOR: 3}
    assert len(said) == 3
    ours = results.quality[OURS]
    assert max(ours["fvu"]) < 0.7
    assert ours["l0"] <= 4.0
    assert 0.0 <= ours["dead"] < 0.5
    assert ours["memory"] >= 0.0
    figures = fit.figures(results, job)
    assert figures["trainers"][OURS]["ours_over_it"] == {"median": 1.0, "low": 1.0, "high": 1.0}


def test_where_our_product_has_another_precision_ours_takes_part_in_both(tmp_path: Path) -> None:
    job = Job(str(tmp_path), (16,), 64, 4, 256, 20, 2048, 10_000, 0, 1, "cpu")
    write_activations(Planted(job.widths, 64, 2.5), 2048 + 512, tmp_path / "activations.npy")
    rows = torch.randint(2048, (job.steps, job.batch), generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "rows.npy", rows.numpy())
    results = run_rounds(job, [], 2, Path(sys.executable), print, encode="bfloat16")
    assert set(results.seconds) == {OURS, OURS_FLOAT32, FLOOR}
    assert [results.quality[name]["what"].count("bfloat16") for name in (OURS, OURS_FLOAT32)] == [1, 0]
    assert results.quality[OURS]["fvu"] != results.quality[OURS_FLOAT32]["fvu"]
    assert results.quality[OURS]["fvu"][0] == pytest.approx(results.quality[OURS_FLOAT32]["fvu"][0], rel=0.1)


def test_a_trainer_that_fails_says_why(tmp_path: Path) -> None:
    job = Job(str(tmp_path / "missing"), (16,), 64, 4, 256, 4, 4096, 10_000, 0, 1, "cpu")
    with pytest.raises(RuntimeError, match=r"activations\.npy"):
        run_rounds(job, [], 2, Path(sys.executable), print)


def test_figures_are_medians_over_rounds_and_ratios_within_them() -> None:
    job = Job("", (8,), 16, 2, 100, 4, 100, 100, 0, 1, "cpu")
    quality = {"fvu": [0.5], "l0": 2.0, "dead": 0.0}
    # The second round met a machine at half its speed: no ratio notices.
    seconds = {OURS: [1.0, 2.0, 1.0], FLOOR: [0.5, 1.0, 0.5], "peer": [3.0, 6.0, 4.0]}
    found = fit.figures(Results(seconds, {OURS: quality, "peer": quality}), job)
    peer = found["trainers"]["peer"]
    assert peer["ours_over_it"] == {"median": 3.0, "low": 3.0, "high": 3.5}
    assert peer["step_over_product"]["median"] == 6.0
    assert peer["positions_per_second"] == 25.0
    assert found["product"]["ms"] == 500.0


def test_goals_are_met_only_where_the_figures_say_so(result: dict) -> None:
    met = {goal.text: goal.met for goal in fit_report.goals(result)}
    assert all(met[text] for text in met if "dictionary" in text or "FVU" in text or "product" in text)
    assert not met["at least 2.5 x the positions per second of eai-sparsify"]
    result["trainers"]["eai-sparsify"]["fvu"] = [0.09, 0.2]
    result["trainers"][OURS]["dead"] = 0.02
    met = {goal.text: goal.met for goal in fit_report.goals(result)}
    assert not met["FVU of every source below that of every peer"]
    assert not met["dead latents under 1%"]
    result["configuration"]["steps"] = 100
    assert not any("FVU" in goal.text or "dead" in goal.text for goal in fit_report.goals(result))


def test_the_page_keeps_what_others_wrote(result: dict, tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(f"# Before\n{fit_report.BEGIN}\nold\n{fit_report.END}\nafter\n", encoding="utf-8")
    fit_report.write_page(result, tmp_path)
    larger = json.loads(json.dumps(result))
    larger["configuration"]["latents"] = 8192
    fit_report.write_page(larger, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert text.index("2,048 latents") < text.index("8,192 latents")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (tmp_path / target).exists()


def test_plot_and_table_show_every_trainer(result: dict) -> None:
    drawing = ElementTree.fromstring(fit_report.plot(result))
    labels = {node.text for node in drawing.iter("{http://www.w3.org/2000/svg}text")}
    assert {OURS, "dictionary-learning", "eai-sparsify", "0.300"} <= labels
    table = fit_report.markdown(fit_report.rows(result)).splitlines()
    assert len({len(line) for line in table}) == 1
    assert len(table) == 2 + 3 + 1


def test_options_that_cannot_be_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--peers", "nobody"], ["--rounds", "500"], ["--held-out", "100"]):
        with pytest.raises(SystemExit):
            fit.parse(arguments)
    assert "no such trainer: nobody" in capsys.readouterr().err
    assert fit.parse(["--device", "cuda"]).latents == 73_728
