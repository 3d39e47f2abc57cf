"""Harvest: the right values at the right positions, in order, once; and the same bytes after any interruption."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from featurewatch.workers.activations.corpus import Document
from featurewatch.workers.activations.harvest.reading import Buffers
from featurewatch.workers.activations.harvest.run import harvest
from featurewatch.workers.activations.harvest.shards import HarvestSpec
from featurewatch.workers.activations.positions import Positions, Reader
from featurewatch.workers.activations.store import check_finite, open_activations
from featurewatch.workers.errors import RunError
from tests.unit.activations.tiny import CONFIGS, TEXTS, TOKENIZERS, in_place, save_checkpoint, weights_of, zero

CORPUS = [Document(number * 3, text) for number, text in enumerate([*TEXTS, "", "x", *(text[::-1] for text in TEXTS)])]
HOOK_POINTS = ["resid_post.1", "mlp_out.0", "attn_out.1"]


def spec_for(folder: Path, **changes: Any) -> HarvestSpec:
    root = folder.parent
    defaults = HarvestSpec(
        uri=f"file://{folder}", hook_points=HOOK_POINTS, corpus=CORPUS, cache_dir=root / "cache", context_length=48,
        roots=(root,), shard_positions=60, batch_tokens=128, max_norm_ratio=1e9, compute_dtype="float32",
    )  # fmt: skip
    return replace(defaults, **changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def harvested(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole harvest of the shared Llama. Read only."""
    out = tmp_path_factory.mktemp("harvested") / "out"
    harvest(spec_for(llama_folder), out)
    return out


@torch.no_grad()
def slow(folder: Path, tokenizer: str, layer: int, positions: Positions, context_length: int = 48) -> torch.Tensor:
    """resid_post of each position, one document at a time through the whole model; 0 where no token ends there."""
    model = AutoModel.from_pretrained(folder).eval()
    reader = Reader(TOKENIZERS[tokenizer](), None)
    texts = {document.id: document.text for document in CORPUS}
    rows = []
    for document, end in zip(positions.document, positions.end, strict=True):
        tokens = reader.read([texts[int(document)]], context_length)[0]
        at = [token for token, there in zip(tokens.token, tokens.end, strict=True) if there == end]
        states = model(torch.from_numpy(tokens.ids)[None], output_hidden_states=True).hidden_states[layer + 1]
        rows.append(states[0, at[0]] if at else torch.zeros(states.shape[-1]))
    return torch.stack(rows)


def test_values_are_those_of_each_document_alone_in_position_order(harvested: Path, llama_folder: Path) -> None:
    activations = open_activations(harvested, hook_points=HOOK_POINTS)
    positions = Positions.load(harvested / "documents.safetensors")
    assert activations.hook_points == dict.fromkeys(HOOK_POINTS, 32)
    assert activations.n_positions == len(positions) > 300
    assert len(list(harvested.glob("resid_post.1-*"))) > 3
    assert (np.diff(activations.document) >= 0).all()
    assert set(activations.document) == {document.id for document in CORPUS if len(document.text) > 1}
    assert activations.valid.all()
    expected = slow(llama_folder, "byte_level", 1, positions)
    torch.testing.assert_close(activations.read("resid_post.1", slice(None)), expected, atol=2e-5, rtol=2e-5)
    check_finite(activations)


def test_the_first_tokens_are_no_positions(harvested: Path) -> None:
    positions = Positions.load(harvested / "documents.safetensors")
    assert (positions.start > 0).all()


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("llama", "distilbert")])
def test_every_architecture_is_harvested(tmp_path: Path, name: str) -> None:
    tokenizer = "word_piece" if name == "bert" else "byte_level"
    folder = save_checkpoint(tmp_path / name, name, tokenizer=tokenizer)
    summary = harvest(spec_for(folder), tmp_path / "out")
    activations = open_activations(tmp_path / "out", hook_points=HOOK_POINTS)
    positions = Positions.load(tmp_path / "out" / "documents.safetensors")
    chosen = np.arange(0, len(positions), 17)
    some = Positions(positions.document[chosen], positions.start[chosen], positions.end[chosen])
    expected = slow(folder, tokenizer, 1, some)
    torch.testing.assert_close(activations.read("resid_post.1", chosen), expected, atol=5e-5, rtol=5e-5)
    assert summary.n_positions == len(positions)
    assert summary.positions_per_second > 0


@pytest.mark.parametrize("tokenizer", ["metaspace", "word_piece"])
def test_another_tokenizer_is_aligned_to_the_familys_positions(tmp_path: Path, harvested: Path, tokenizer: str) -> None:
    positions = Positions.load(harvested / "documents.safetensors")
    folder = save_checkpoint(tmp_path / "other", "gpt2", tokenizer=tokenizer)
    summary = harvest(spec_for(folder, positions=positions, context_length=200), tmp_path / "out")
    activations = open_activations(tmp_path / "out", expected_positions=len(positions), hook_points=["resid_post.1"])
    expected = slow(folder, tokenizer, 1, positions, 200)
    assert (activations.valid == (expected != 0).any(dim=1).numpy()).all()
    assert 0.1 < activations.valid.mean() < 0.99
    assert summary.valid_share == activations.valid.mean()
    torch.testing.assert_close(activations.read("resid_post.1", slice(None)), expected, atol=5e-5, rtol=5e-5)
    again = Positions.load(tmp_path / "out" / "documents.safetensors")
    assert again.digest == positions.digest


def test_the_same_tokenizer_gives_the_same_bytes_whether_it_defines_positions_or_not(
    tmp_path: Path, harvested: Path, llama_folder: Path
) -> None:
    positions = Positions.load(harvested / "documents.safetensors")
    harvest(spec_for(llama_folder, positions=positions), tmp_path / "out")
    first, second = contents(harvested), contents(tmp_path / "out")
    for name in first:
        if name not in ("plan.json", "manifest.json"):
            assert first[name] == second[name], name


def test_positions_with_outlying_norms_are_not_valid(tmp_path: Path, llama_folder: Path, harvested: Path) -> None:
    norms = open_activations(harvested, hook_points=["resid_post.1"]).read("resid_post.1", slice(None)).norm(dim=1)
    ratio = float(norms.sort().values[-5] / norms.median() * 1.0001)
    harvest(spec_for(llama_folder, hook_points=["resid_post.1"], max_norm_ratio=ratio), tmp_path / "out")
    valid = open_activations(tmp_path / "out", hook_points=["resid_post.1"]).valid
    assert set(np.flatnonzero(~valid)) == set(norms.topk(4).indices.tolist())


def test_an_adapter_changes_what_is_read(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "llama")
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=2, target_modules=["o_proj"], task_type="CAUSAL_LM")
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.5)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "merged")
    rows = []
    for number, (place, adapter) in enumerate(
        [(folder, f"file://{tmp_path / 'adapter'}"), (tmp_path / "merged", None), (folder, None)]
    ):
        harvest(spec_for(place, adapter=adapter), tmp_path / f"out{number}")
        rows.append(
            open_activations(tmp_path / f"out{number}", hook_points=HOOK_POINTS).read("attn_out.1", slice(None))
        )
    torch.testing.assert_close(rows[0], rows[1], atol=1e-5, rtol=1e-5)
    assert (rows[0] - rows[2]).abs().max() > 0.1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_shards_may_be_stored_in_half_precision(
    tmp_path: Path, llama_folder: Path, harvested: Path, dtype: str
) -> None:
    harvest(spec_for(llama_folder, store_dtype=dtype), tmp_path / "out")
    short = open_activations(tmp_path / "out", hook_points=HOOK_POINTS).read("mlp_out.0", slice(None))
    long = open_activations(harvested, hook_points=HOOK_POINTS).read("mlp_out.0", slice(None))
    assert torch.equal(short, long.to(getattr(torch, dtype)))


def test_a_model_may_compute_in_bfloat16(tmp_path: Path, llama_folder: Path, harvested: Path) -> None:
    harvest(spec_for(llama_folder, compute_dtype="bfloat16"), tmp_path / "out")
    short = open_activations(tmp_path / "out", hook_points=HOOK_POINTS).read("resid_post.1", slice(None))
    long = open_activations(harvested, hook_points=HOOK_POINTS).read("resid_post.1", slice(None))
    assert torch.nn.functional.cosine_similarity(short, long).min() > 0.995
    assert not torch.equal(short, long)


class StopHereError(Exception):
    """Stands for a cancelled run or a lost lease."""


def stop_after(calls: int) -> Callable[[], None]:
    left = [calls]

    def check() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise StopHereError

    return check


@pytest.mark.parametrize("calls", [0, 3, 5, 8])
def test_a_harvest_that_was_stopped_goes_on_to_the_same_bytes(
    tmp_path: Path, llama_folder: Path, harvested: Path, calls: int
) -> None:
    out = tmp_path / "out"
    with pytest.raises(StopHereError):
        harvest(spec_for(llama_folder), out, check=stop_after(calls))
    assert not (out / "manifest.json").exists()
    stamps = {file: file.stat().st_mtime_ns for file in out.glob("resid*")} if out.exists() else {}
    assert len(stamps) < len(list(harvested.glob("resid*")))
    harvest(spec_for(llama_folder), out)
    assert contents(out) == contents(harvested)
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in stamps.items())


def test_a_process_killed_in_the_middle_goes_on_to_the_same_bytes(
    tmp_path: Path, llama_folder: Path, harvested: Path
) -> None:
    out = tmp_path / "out"
    program = (
        "import sys, time\nfrom pathlib import Path\n"
        "from tests.unit.activations.test_harvest import spec_for, harvest\n"
        f"harvest(spec_for(Path({str(llama_folder)!r})), Path({str(out)!r}), check=lambda: time.sleep(0.15))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[3])
    try:
        deadline = time.monotonic() + 120
        while len(list(out.glob("resid*"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert not (out / "manifest.json").exists()
    harvest(spec_for(llama_folder), out)
    assert contents(out) == contents(harvested)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-50])


def renumber(file: Path) -> None:
    """A digit in the manifest: the second shard is said to be the first once more."""
    file.write_text(file.read_text().replace("resid_post.1-00001", "resid_post.1-00000"))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("resid_post.1-00001.safetensors", lambda file: in_place(file, zero)),
        ("documents.safetensors", lambda file: in_place(file, zero)),
        ("documents.safetensors", cut),
        ("manifest.json", lambda file: in_place(file, zero)),
        ("manifest.json", cut),
        ("manifest.json", renumber),
        ("plan.json", cut),
    ],
)
def test_a_finished_harvest_that_is_damaged_is_made_whole(
    tmp_path: Path, llama_folder: Path, harvested: Path, name: str, damage: Callable[[Path], None]
) -> None:
    out = shutil.copytree(harvested, tmp_path / "out")
    damage(out / name)
    assert contents(out) != contents(harvested)
    harvest(spec_for(llama_folder), out)
    assert contents(out) == contents(harvested)


def test_a_zeroed_shard_of_a_killed_attempt_is_read_again(tmp_path: Path, llama_folder: Path, harvested: Path) -> None:
    """Its header and its size say nothing."""
    out = tmp_path / "out"
    with pytest.raises(StopHereError):
        harvest(spec_for(llama_folder), out, check=stop_after(7))
    in_place(out / "resid_post.1-00000.safetensors", zero)
    harvest(spec_for(llama_folder), out)
    assert contents(out) == contents(harvested)


def test_a_damaged_shard_of_a_killed_attempt_is_read_again(tmp_path: Path, llama_folder: Path, harvested: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(StopHereError):
        harvest(spec_for(llama_folder), out, check=stop_after(7))
    first = out / "resid_post.1-00000.safetensors"
    first.write_bytes(first.read_bytes()[:-50])
    (out / ".leftover.tmp").write_bytes(b"half a file")
    harvest(spec_for(llama_folder), out)
    assert contents(out) == contents(harvested)


@pytest.mark.parametrize(
    "changes",
    [
        {"context_length": 40},
        {"corpus": [*CORPUS[:-1], Document(CORPUS[-1].id, "Another last document, of some length.")]},
        {"skip_tokens": 2},
        {"store_dtype": "float16"},
    ],
)
def test_other_inputs_start_over(tmp_path: Path, llama_folder: Path, changes: dict[str, Any]) -> None:
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    harvest(spec_for(llama_folder), out)
    harvest(spec_for(llama_folder, **changes), out)
    harvest(spec_for(llama_folder, **changes), fresh)
    assert contents(out) == contents(fresh)


def test_replaced_weights_start_over(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "llama", seed=1)
    harvest(spec_for(folder), tmp_path / "out")
    before = contents(tmp_path / "out")
    save_checkpoint(tmp_path / "llama", seed=2)
    harvest(spec_for(folder), tmp_path / "out")
    assert contents(tmp_path / "out")["resid_post.1-00000.safetensors"] != before["resid_post.1-00000.safetensors"]


def test_a_finished_harvest_is_not_done_again(harvested: Path, llama_folder: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in harvested.iterdir()}
    summary = harvest(spec_for(llama_folder), harvested)
    assert summary.n_positions == json.loads((harvested / "manifest.json").read_text())["positions"]
    assert {file: file.stat().st_mtime_ns for file in harvested.iterdir()} == before


def test_progress_goes_up_to_one_and_tells_the_rate(tmp_path: Path, llama_folder: Path) -> None:
    seen: list[tuple[float, dict[str, Any]]] = []
    harvest(
        spec_for(llama_folder), tmp_path / "out", on_progress=lambda share, /, **detail: seen.append((share, detail))
    )
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) > 5
    assert all(detail["positions_per_second"] > 0 and detail["total"] == seen[-1][1]["positions"] for _, detail in seen)


def test_a_model_that_computes_nan_is_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "llama")
    weights = weights_of(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError) as caught:
        harvest(spec_for(folder), tmp_path / "out")
    assert caught.value.code == "not-finite"
    assert "resid_post.1" in caught.value.detail
    harvest(spec_for(folder, hook_points=["mlp_out.0"]), tmp_path / "out")  # the layer is not run


def test_values_beyond_float16_are_refused_and_not_stored_as_infinity(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "llama")
    weights = weights_of(folder / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"] *= 1e6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    harvest(spec_for(folder), tmp_path / "long")
    with pytest.raises(RunError) as caught:
        harvest(spec_for(folder, store_dtype="float16"), tmp_path / "short")
    assert caught.value.code == "not-finite"


def test_positions_of_another_corpus_are_refused(tmp_path: Path, llama_folder: Path, harvested: Path) -> None:
    positions = Positions.load(harvested / "documents.safetensors")
    with pytest.raises(RunError) as caught:
        harvest(spec_for(llama_folder, positions=positions, corpus=CORPUS[1:]), tmp_path / "out")
    assert caught.value.code == "wrong-positions"


def test_a_hook_point_that_the_model_lacks_leaves_nothing_behind(tmp_path: Path, llama_folder: Path) -> None:
    with pytest.raises(RunError) as caught:
        harvest(spec_for(llama_folder, hook_points=["resid_post.9"]), tmp_path / "out")
    assert caught.value.code == "unknown-hook-point"
    assert not (tmp_path / "out").exists()


def test_a_document_longer_than_the_models_own_limit_is_cut_there(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "gpt2", "gpt2")
    corpus = [Document(0, "The lazy dog. " * 500)]
    harvest(spec_for(folder, corpus=corpus, context_length=4000), tmp_path / "out")
    assert open_activations(tmp_path / "out", hook_points=HOOK_POINTS).n_positions == 256 - 1


def test_buffers_have_their_types_whatever_another_thread_loads() -> None:
    """A model that is loaded in bfloat16 makes that torch's default for the process meanwhile."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        buffers = Buffers(3, {"resid_post.1": 4}, torch.float16)
    finally:
        torch.set_default_dtype(torch.float32)
    assert buffers.activations["resid_post.1"].dtype == torch.float16
    assert buffers.norms["resid_post.1"].dtype == torch.float32
