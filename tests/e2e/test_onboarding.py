"""From registration to verdicts over REST, with a live service: planted activations, and a real small model."""

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy import sparse
from transformers import AutoModelForCausalLM

from benchmarks.planted_data import Lineage, make_lineage
from benchmarks.planted_score import Matching, match
from tests.e2e.parts import HOOK_POINT, Service, unfinished, write_lineage
from tests.unit.activations.tiny import byte_level, save_checkpoint

CHANGES = {"suppressed", "absent", "emerged"}


@cache
def lineage() -> Lineage:
    """Three checkpoints; in v2 and in v3 each, two features are suppressed, two removed and two are new."""
    return make_lineage(
        0, n_checkpoints=3, n_positions=6000, width=48, n_planted=40,
        n_suppressed=4, n_removed=4, n_born=4, lowest_rate=0.03,
    )  # fmt: skip


class Onboarded:
    """A family with the whole lineage judged, and which of its features are which planted ones."""

    def __init__(self, service: Service) -> None:
        self.service, self.client = service, service.client
        options = {"n_features": 60, "k": 3, "steps": 1400, "batch_size": 256, "learning_rate": 0.003}
        self.client.create_family("planted", [HOOK_POINT], crosscoder=options)
        self.codes: list[sparse.csr_array] = []
        self.ids: list[list[str]] = []
        for number, uri in enumerate(write_lineage(lineage(), service.folder / "planted"), start=1):
            service.judge("planted", f"v{number}", uri)
            path = self.client.download_codes("planted", service.folder / f"codes-{number}.npz")
            self.codes.append(sparse.csr_array(sparse.load_npz(path)))
            self.ids.append(self.client.code_ids("planted"))
        numbers = [int(name.removeprefix("F")) for name in self.ids[-1]]
        self.matching: Matching = match(lineage().codes, self.codes[-1], numbers)

    def feature(self, planted: int) -> str:
        """Id of the feature that a planted one became."""
        return f"F{self.matching.latent[planted]}"

    def expected(self, checkpoint: int) -> dict[str, str]:
        """Feature id -> status of what was planted in a checkpoint, against its parent."""
        kinds = {"suppressed": "suppressed", "removed": "absent", "born": "emerged"}
        return {
            self.feature(event.feature): kinds[event.kind]
            for event in lineage().events
            if event.checkpoint == checkpoint
        }

    def rows(self, **query: Any) -> dict[str, dict[str, Any]]:
        return {row["id"]: dict(row) for row in self.client.features("planted", **query)}


@pytest.fixture(scope="module")
def onboarded(service: Service) -> Onboarded:
    return Onboarded(service)


@pytest.mark.parametrize("checkpoint", [2, 3])
def test_what_was_planted_is_reported_and_nothing_else(onboarded: Onboarded, checkpoint: int) -> None:
    assert (onboarded.matching.latent >= 0).all(), "a planted feature has no latent"
    expected = onboarded.expected(checkpoint)
    assert Counter(expected.values()) == {"suppressed": 2, "absent": 2, "emerged": 2}
    said = {name: row["status"] for name, row in onboarded.rows(checkpoint=f"v{checkpoint}").items()}
    was_absent = {name for name, status in onboarded.expected(checkpoint - 1).items() if status == "absent"}
    still = {name: said.pop(name) for name in was_absent}
    assert set(still.values()) <= {"absent"}, "what was lost before is still lost"
    assert {name: status for name, status in said.items() if status not in ("present", "indeterminate")} == expected
    assert sum(status == "present" for status in said.values()) >= 40


def test_ratios_follow_the_planted_levels(onboarded: Onboarded) -> None:
    for event in lineage().events:
        if event.kind != "born":
            row = onboarded.rows(checkpoint=f"v{event.checkpoint}", q=onboarded.feature(event.feature))
            point = row[onboarded.feature(event.feature)]
            low, high = point["projection_ratio_ci"]
            assert low <= point["projection_ratio"] <= high
            assert abs(point["projection_ratio"] - event.level) < 0.08, event
            assert high < (0.1 if event.kind == "removed" else 0.5)


def test_at_the_only_hook_point_intervals_are_the_verdict_s(onboarded: Onboarded) -> None:
    for checkpoint in ("v2", "v3"):
        judged = {
            name: row for name, row in onboarded.rows(checkpoint=checkpoint).items() if row["projection_ratio_ci"]
        }
        for name in list(judged)[:10]:
            places = {one["checkpoint"]: one["sources"] for one in onboarded.client.sources("planted", name)}
            (source,) = places[checkpoint]
            for figure in ("projection_ratio", "projection_ratio_ci"):
                assert source[figure] == pytest.approx(judged[name][figure], abs=1e-4)


def test_ids_and_columns_never_change(onboarded: Onboarded) -> None:
    for codes, ids in zip(onboarded.codes, onboarded.ids, strict=True):
        assert codes.shape == (6000, len(ids))
        assert ids == [f"F{number}" for number in range(len(ids))]
    widths = [codes.shape[1] for codes in onboarded.codes]
    assert widths[0] == 60 < widths[1] < widths[2]
    for before, after in zip(onboarded.codes, onboarded.codes[1:], strict=False):
        assert (before != after[:, : before.shape[1]]).nnz == 0
    first = onboarded.client.code_ids("planted", checkpoint="v1")
    assert first == onboarded.ids[0]
    born = {name: row["born_in"] for name, row in onboarded.rows().items()}
    assert [born[name] for name in onboarded.ids[2]] == (
        ["v1"] * widths[0] + ["v2"] * (widths[1] - widths[0]) + ["v3"] * (widths[2] - widths[1])
    )


def test_the_report_in_its_three_formats(onboarded: Onboarded) -> None:
    report = onboarded.client.report("planted", "v2")
    expected = onboarded.expected(2)
    assert {name: report["counts"][name] for name in CHANGES} == {"suppressed": 2, "absent": 2, "emerged": 2}
    assert {row["id"]: row["status"] for row in report["changes"]} == expected
    assert 0 < report["quality"]["fvu"] < 0.6
    assert report["quality"]["valid_share"] == 1.0
    markdown = onboarded.client.report_text("planted", "v2", format="markdown")
    html = onboarded.client.report_text("planted", "v2", format="html")
    for name, status in expected.items():
        assert any(name in line and status in line for line in markdown.splitlines()), markdown
        assert f"{name}<" in html
    assert html.lstrip().lower().startswith("<!doctype html")


def test_features_are_filtered_and_sorted(onboarded: Onboarded) -> None:
    expected = onboarded.expected(3)
    suppressed = {name for name, status in expected.items() if status == "suppressed"}
    assert set(onboarded.rows(status=["suppressed"])) == suppressed
    changed = {name for name, status in expected.items() if status in ("suppressed", "emerged")}
    assert set(onboarded.rows(checkpoint="v3", status=["suppressed", "emerged"])) == changed
    one = min(suppressed)
    onboarded.client.update_feature("planted", one, label="says sorry", tags=["sycophancy"], watched=True)
    for query in ({"q": "sorry"}, {"tag": "sycophancy"}, {"watched": True}, {"q": one, "status": ["suppressed"]}):
        assert list(onboarded.rows(**query)) == [one], query
    assert onboarded.rows(tag="nothing") == {}
    rates = [row["firing_rate"] for row in onboarded.client.features("planted", sort="firing_rate")]
    assert rates == sorted(rates, reverse=True)
    # The baseline can be any checkpoint: against v1, what went in v2 is gone as well.
    against_first = set(onboarded.rows(checkpoint="v3", baseline="v1", status=["absent"]))
    assert against_first == {
        name for c in (2, 3) for name, status in onboarded.expected(c).items() if status == "absent"
    }


def test_a_trajectory_shows_the_onset(onboarded: Onboarded) -> None:
    event = next(e for e in lineage().events if e.kind == "suppressed" and e.checkpoint == 2)
    points = onboarded.client.trajectory("planted", onboarded.feature(event.feature))
    assert [(point["checkpoint"], point["status"]) for point in points] == [
        ("v1", "present"), ("v2", "suppressed"), ("v3", "present"),
    ]  # fmt: skip
    assert [point["baseline"] for point in points] == [None, "v1", "v2"]
    born = next(e for e in lineage().events if e.kind == "born" and e.checkpoint == 3)
    points = onboarded.client.trajectory("planted", onboarded.feature(born.feature))
    assert [(point["checkpoint"], point["status"]) for point in points][-1] == ("v3", "emerged")


def test_any_two_checkpoints_can_be_compared(onboarded: Onboarded) -> None:
    rows = {row["id"]: row["status"] for row in onboarded.client.diff("planted", "v1", "v3")}
    truth = lineage().truth(3).against_first
    said = {onboarded.feature(planted): status for planted, status in enumerate(truth)}
    wrong = {name: (rows[name], status) for name, status in said.items() if rows[name] != status}
    assert not wrong, "said, planted"
    changes = [row["change"] for row in onboarded.client.diff("planted", "v1", "v3")]
    assert changes == sorted(changes, reverse=True)


# A real model


def write_corpus(path: Path) -> None:
    """Some 200 short documents out of a small vocabulary, so that tokens come again and again."""
    rng = np.random.default_rng(0)
    nouns, verbs = ["fox", "dog", "weather", "owner", "tokenizer", "café"], ["jumps over", "cuts", "says", "adds"]
    texts = [
        " ".join(f"The {rng.choice(nouns)} {rng.choice(verbs)} the {rng.choice(nouns)}." for _ in range(6))
        for _ in range(200)
    ]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


@pytest.fixture(scope="module")
def models(service: Service) -> Path:
    """A tiny Llama, the same in bfloat16, and a LoRA adapter for it; judged as v1, v2 and v3 of the family `tiny`."""
    folder = service.folder / "models"
    save_checkpoint(folder / "base", "llama")
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    base.to(torch.bfloat16).save_pretrained(folder / "half")
    byte_level().save_pretrained(folder / "half")
    torch.manual_seed(5)
    settings = LoraConfig(r=4, target_modules=["o_proj", "down_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32), settings)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.5)
    adapted.save_pretrained(folder / "adapter")
    write_corpus(folder / "corpus.jsonl")
    service.client.create_family(
        "tiny",
        ["resid_post.1", "mlp_out.2"],
        corpus={"uri": f"file://{folder}/corpus.jsonl", "context_length": 128},
        crosscoder={"n_features": 48, "k": 4, "steps": 300, "batch_size": 512, "learning_rate": 0.003},
    )
    service.judge("tiny", "v1", f"file://{folder}/base")
    service.judge("tiny", "v2", f"file://{folder}/half", parent="v1")
    service.judge("tiny", "v3", f"file://{folder}/base", adapter=f"file://{folder}/adapter", parent="v1")
    return folder


def test_the_same_weights_in_bfloat16_change_nothing(service: Service, models: Path) -> None:
    report = service.client.report("tiny", "v2")
    assert {name for name, count in report["counts"].items() if count} <= {"present", "indeterminate"}
    assert report["counts"]["present"] >= 30
    assert report["changes"] == []
    assert report["quality"]["valid_share"] > 0.95
    quality = [service.client.checkpoint("tiny", name)["quality"] or {} for name in ("v1", "v2")]
    assert abs(quality[0]["fvu"] - quality[1]["fvu"]) < 0.01


def test_an_adapter_is_another_model(service: Service, models: Path) -> None:
    """So strong a random adapter turns most of what the base wrote; none of it may come from the base alone."""
    rows = list(service.client.features("tiny", checkpoint="v3"))
    cosines = [row["direction_cosine"] for row in rows if row["direction_cosine"] is not None]
    same = [row["direction_cosine"] for row in service.client.features("tiny", checkpoint="v2")]
    assert np.median(cosines) < 0.9
    assert np.median([value for value in same if value is not None]) > 0.999
    assert any(row["status"] not in ("present", "indeterminate") for row in rows)
    checkpoint = service.client.checkpoint("tiny", "v3")
    assert (checkpoint["parent"], checkpoint["adapter"]) == ("v1", f"file://{models}/adapter")


def test_examples_show_text(service: Service, models: Path) -> None:
    documents = [json.loads(line)["text"] for line in (models / "corpus.jsonl").read_text().splitlines()]
    rows = [row for row in service.client.features("tiny", sort="firing_rate") if row["firings"]]
    for row in rows[:5]:
        examples = service.client.examples("tiny", row["id"], limit=4)
        assert len(examples) == 4
        activations = [example["activation"] for example in examples]
        assert activations == sorted(activations, reverse=True)
        assert activations[-1] > 0
        for example in examples:
            before, token, after = example["text_before"], example["token"], example["text_after"]
            assert token
            assert f"{before}{token}{after}" in documents[example["document"]]
        assert examples[0]["token"] in row["top_tokens"]


def test_nothing_unfinished_is_left(service: Service, onboarded: Onboarded, models: Path) -> None:
    assert unfinished(service.folder / "data") == []
