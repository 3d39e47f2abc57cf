"""Configs against the tensors that are there: what fits none of them is refused before a model is built."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from featurewatch.service.checkpoints import weights
from featurewatch.service.checkpoints.faults import UnusableError
from featurewatch.service.checkpoints.sizes import Census, check_config
from featurewatch.service.checkpoints.weights import check_folder, check_model
from featurewatch.workers.activations.models.loading import load_model, locate_model
from featurewatch.workers.errors import RunError
from tests.unit.activations.tiny import CONFIGS, save_checkpoint
from tests.unit.checkpoints.raw import entry, memory_below, write_safetensors


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("models") / "llama")


def changed(whole: Path, folder: Path, **changes: Any) -> Path:
    """The model with another config, the rest linked."""
    folder.mkdir()
    for file in whole.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((whole / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def refused(folder: Path, code: str, *words: str) -> None:
    """By the API and, in the same words, by the worker."""
    with pytest.raises(UnusableError) as caught:
        check_model(folder, ["resid_post.1"])
    assert caught.value.code == code, caught.value.detail
    for word in words:
        assert word in caught.value.detail
    with pytest.raises(RunError) as failed:
        locate_model(f"file://{folder}", roots=(Path("/"),), cache_dir=folder / "cache")
    assert (failed.value.code, failed.value.detail) == (code, caught.value.detail)


@pytest.mark.parametrize("name", CONFIGS)
def test_models_of_every_architecture_fit_their_own_config(tmp_path: Path, name: str) -> None:
    folder = save_checkpoint(tmp_path / name, name)
    check_model(folder, ["resid_post.3"])
    locate_model(f"file://{folder}", roots=(tmp_path,), cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_hidden_layers": 2_000_000}, "2000000 layers, but the tensors have 4"),
        ({"num_hidden_layers": 5}, "5 layers, but the tensors have 4"),
        ({"num_hidden_layers": 3}, "3 layers, but the tensors have 4"),
        ({"hidden_size": 10**9}, "hidden_size is 1000000000"),
        ({"hidden_size": 33}, "hidden_size is 33"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000"),
        ({"vocab_size": 401}, "vocab_size is 401"),
        ({"intermediate_size": 10**9}, "intermediate_size is 1000000000"),
        ({"num_attention_heads": 10**9}, "num_attention_heads is 1000000000"),
        ({"num_key_value_heads": 10**6}, "num_key_value_heads is 1000000"),
        ({"head_dim": 2**40}, "head_dim is 1099511627776"),
        ({"num_local_experts": 10**7}, "num_local_experts is 10000000"),
        ({"encoder_layers": 2_000_000}, "encoder_layers is 2000000"),
        ({"vision_config": {"num_hidden_layers": 2_000_000}}, "num_hidden_layers is 2000000"),
        ({"vision_config": [{"a": {"hidden_size": 10**9}}]}, "hidden_size is 1000000000"),
        ({"max_position_embeddings": 10**9}, "max_position_embeddings is 1000000000"),
        ({"text_config": {"vocab_size": 500}}, "vocab_size is 500,"),
        ({"text_config": {"hidden_size": 8}, "num_hidden_layers": None}, "hidden_size is 8,"),
    ],
)
def test_configs_of_other_models(tmp_path: Path, whole: Path, changes: dict[str, Any], says: str) -> None:
    refused(changed(whole, tmp_path / "model", **changes), "config-mismatch", says)


def test_two_million_layers_and_ten_tensors(tmp_path: Path) -> None:
    tensors = {f"model.layers.{number}.weight": entry([4], 16 * number, 16 * number + 16) for number in range(10)}
    write_safetensors(tmp_path / "model.safetensors", tensors, 160)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 2_000_000}))
    with memory_below(20_000_000):
        refused(tmp_path, "config-mismatch", "2000000 layers", "10")
    tensors = {f"weight_{number}": entry([4], 16 * number, 16 * number + 16) for number in range(10)}
    write_safetensors(tmp_path / "model.safetensors", tensors, 160)
    refused(tmp_path, "config-mismatch", "2000000 layers", "no numbered layers")


def test_parameters_that_the_file_does_not_have(tmp_path: Path, whole: Path) -> None:
    """Sizes that are each small enough, of another architecture than the tensors': 17 billion parameters."""
    config = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 60_000}
    folder = changed(whole, tmp_path / "model", **config, intermediate_size=750)
    check_model(folder, [])  # the API cannot know
    with pytest.raises(RunError, match="its files hold") as caught:
        locate_model(f"file://{folder}", roots=(Path("/"),), cache_dir=tmp_path)
    assert caught.value.code == "config-mismatch"


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "wide"},
        {"hidden_size": -32},
        {"num_attention_heads": 0},
        {"vocab_size": None},
        {"num_hidden_layers": "many"},
        {"rope_parameters": {"rope_type": "none such"}},
    ],
)
def test_configs_that_make_no_sense(tmp_path: Path, whole: Path, changes: dict[str, Any]) -> None:
    folder = changed(whole, tmp_path / "model", **changes)
    with pytest.raises(RunError) as caught:
        load_model(f"file://{folder}", None, roots=(Path("/"),), device="cpu", dtype=torch.float32, cache_dir=tmp_path)
    assert caught.value.code == "model-load-failed", caught.value


@pytest.mark.parametrize(
    ("names", "config"),
    [
        (["model.layers.{}.mlp"], {"num_hidden_layers": 3}),
        (["model.layers.{}.mlp", "model.layers.0.experts.{}.w", "vision.blocks.0.w"], {"num_hidden_layers": 3}),
        (["h.{}.attn"], {"n_layer": 3}),
        (["encoder.block.{}.layer.0.w", "decoder.block.{}.layer.1.w"], {"num_layers": 3, "num_decoder_layers": 3}),
        (["model.layers.{}.mlp"], {"num_hidden_layers": 2, "num_nextn_predict_layers": 1}),
        (["language_model.layers.{}.w", "vision.layers.0.w"], {"text_config": {"num_hidden_layers": 3}}),
        (["encoder.albert_layer_groups.{}.w"], {"num_hidden_layers": 12, "num_hidden_groups": 3}),
        (["model.layers.{}.mlp"], {"num_hidden_layers": 3, "audio_chunk_size": 480_000}),
        (["model.layers.{}.mlp"], {}),
        (["model.layers.{}.mlp"], {"hidden_size": 4096, "quantization_config": {"bits": 4}}),
        (["model.layers.{}.mlp"], {"intermediate_size": 6144, "max_position_embeddings": 10_485_760}),
    ],
)
def test_layers_by_the_names_of_tensors(names: list[str], config: dict[str, Any]) -> None:
    census = Census()
    for name in names:
        for number in range(3):
            census.add(name.format(number), (4, 8))
    check_config(config, census, "config.json")


def test_a_config_that_refers_to_places_elsewhere(tmp_path: Path, whole: Path) -> None:
    for number, changes in enumerate(
        (
            {"attn_implementation": "org/kernel"},
            {"_attn_implementation": {"text_config": "org/kernel@main:x"}},
            {"vision_config": {"backbone": "org/model", "use_pretrained_backbone": True}},
        )
    ):
        refused(changed(whole, tmp_path / str(number), **changes), "path-escapes", "org/")
    check_model(changed(whole, tmp_path / "own", attn_implementation="eager", backbone=None), [])


def test_files_that_are_too_large(tmp_path: Path, whole: Path) -> None:
    folder = changed(whole, tmp_path / "model", padding="x" * 2_000_000)
    refused(folder, "too-large", "config.json")
    (folder / "config.json").write_text("[" * 250_000)
    refused(folder, "too-large", "config.json", "20,000 lists")
    (folder / "config.json").write_text("[" * 20_000)
    refused(folder, "truncated-file", "config.json")
    folder = changed(whole, tmp_path / "sharded")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {str(number): f"{number}.safetensors" for number in range(1001)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "too-large", "1,001 files")


def test_a_request_leaves_a_large_config_to_the_worker(tmp_path: Path, whole: Path) -> None:
    folder = changed(whole, tmp_path / "model", num_hidden_layers=5, padding="x" * 400_000)
    check_model(folder, [])
    with pytest.raises(UnusableError, match="5 layers"):
        check_folder(folder)


def test_a_request_leaves_large_headers_to_the_worker(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their lengths are checked; the rest would take longer than an answer may."""
    folder = changed(whole, tmp_path / "model", num_hidden_layers=5)
    monkeypatch.setattr(weights, "REQUEST_BYTES", 1000)
    check_model(folder, [])
    with pytest.raises(UnusableError, match="5 layers"):
        check_folder(folder)
    (folder / "model.safetensors").unlink()
    write_safetensors(folder / "model.safetensors", b"{" + b" " * 12_000_000)
    with pytest.raises(UnusableError, match="12,000,001"):
        check_model(folder, [])
