"""PEFT adapters: merged exactly, whichever model they were trained on; those that do not fit are refused."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from featurewatch.workers.activations.models.loading import load_model
from featurewatch.workers.errors import RunError
from tests.unit.activations.test_models import write_gguf
from tests.unit.activations.tiny import save_checkpoint, weights_of

IDS = torch.arange(1, 20)[None]
_listeners: list[list[Path]] = []


@contextmanager
def opened() -> Iterator[list[Path]]:
    """Paths of all files that this process opens in the block, as Python sees them."""
    files: list[Path] = []
    if not _listeners:
        sys.addaudithook(_listen)  # for good: there is no way to take it off
    _listeners.append(files)
    yield files
    _listeners[-1:] = [[]]  # the hook is not added again


def _listen(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str | os.PathLike):
        _listeners[-1].append(Path(arguments[0]))


def load(folder: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    root = folder.parent
    model, _ = load_model(
        f"file://{folder}", f"file://{adapter}", roots=(root,), device="cpu", dtype=dtype, cache_dir=root / "cache"
    )
    return model


def adapter_for(base: nn.Module, folder: Path, **settings: object) -> nn.Module:
    """A trained-looking LoRA on `base`, saved at `folder`; returns the model with it on."""
    torch.manual_seed(8)
    defaults = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    adapted = get_peft_model(base, LoraConfig(**{**defaults, **settings}))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(0, 0.3)
    adapted.save_pretrained(folder)
    return adapted.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "llama")


def refused(folder: Path, adapter: Path, code: str, *words: str) -> None:
    with pytest.raises(RunError) as caught:
        load(folder, adapter)
    assert caught.value.code == code, caught.value
    for word in words:
        assert word in caught.value.detail


@torch.no_grad()
def test_an_adapter_of_the_model_with_a_head(tmp_path: Path, folder: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder)
    plain = base.model(IDS).last_hidden_state
    adapted = adapter_for(base, tmp_path / "adapter")
    expected = adapted.base_model.model.model(IDS).last_hidden_state
    model = load(folder, tmp_path / "adapter")
    torch.testing.assert_close(model(IDS).last_hidden_state, expected, atol=1e-5, rtol=1e-4)
    assert (expected - plain).abs().max() > 0.1
    assert not any("lora" in name for name, _ in model.named_modules())


@torch.no_grad()
def test_an_adapter_of_the_body_alone(tmp_path: Path, folder: Path) -> None:
    adapted = adapter_for(AutoModel.from_pretrained(folder), tmp_path / "adapter", task_type="FEATURE_EXTRACTION")
    expected = adapted.base_model.model(IDS).last_hidden_state
    torch.testing.assert_close(
        load(folder, tmp_path / "adapter")(IDS).last_hidden_state, expected, atol=1e-5, rtol=1e-4
    )


@torch.no_grad()
def test_an_adapter_of_a_classifier_on_bert(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "bert", "bert", tokenizer="word_piece")
    base = AutoModelForSequenceClassification.from_pretrained(folder)
    settings = {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}
    adapted = adapter_for(base, tmp_path / "adapter", **settings)
    expected = adapted.base_model.model.bert(IDS).last_hidden_state
    torch.testing.assert_close(
        load(folder, tmp_path / "adapter")(IDS).last_hidden_state, expected, atol=1e-5, rtol=1e-4
    )


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"layers.2.mlp.up_proj": 2, "q_proj": 3}},
        {"target_modules": ["q_proj"], "alpha_pattern": {"model.layers.1.self_attn.q_proj": 2.5}},
        {"target_modules": ["q_proj"], "layers_to_transform": [0, 3], "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "down_proj"], "exclude_modules": ["model.layers.2.self_attn.q_proj"]},
        {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
        {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
        {"target_modules": ["q_proj"], "init_lora_weights": "mica"},
        {"target_modules": ["embed_tokens", "v_proj"]},
        {"target_modules": ["model.layers.1.self_attn.q_proj"]},
        {"target_modules": ["q_proj"], "use_rslora": True, "lora_alpha": 32},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "use_dora": True},
    ],
)
def test_other_forms_of_adapters(tmp_path: Path, folder: Path, settings: dict[str, object]) -> None:
    adapted = adapter_for(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter", **settings)
    expected = adapted.base_model.model.model(IDS).last_hidden_state
    torch.testing.assert_close(
        load(folder, tmp_path / "adapter")(IDS).last_hidden_state, expected, atol=1e-4, rtol=1e-3
    )


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
@pytest.mark.parametrize("settings", [{"lora_bias": True}, {"bias": "all"}, {"bias": "lora_only"}])
def test_adapters_that_change_biases(tmp_path: Path, name: str, settings: dict[str, object]) -> None:
    folder = save_checkpoint(tmp_path / name, name)
    base = AutoModelForCausalLM.from_pretrained(folder)
    adapted = adapter_for(base, tmp_path / "adapter", target_modules=["c_attn", "q_proj"], **settings)
    for parameter_name, parameter in adapted.named_parameters():
        if parameter.requires_grad and parameter_name.endswith("bias"):
            parameter.normal_(0, 0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted.base_model.model.base_model(IDS).last_hidden_state
    torch.testing.assert_close(
        load(folder, tmp_path / "adapter")(IDS).last_hidden_state, expected, atol=1e-4, rtol=1e-3
    )


def test_a_bias_that_the_base_does_not_have(tmp_path: Path, folder: Path) -> None:
    adapter_for(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter", lora_bias=True)
    refused(folder, tmp_path / "adapter", "adapter-mismatch", "bias")


def test_a_small_change_survives_a_base_in_bfloat16(tmp_path: Path, folder: Path) -> None:
    """Merged in float32 and rounded once, not added to weights that were rounded before."""
    adapted = adapter_for(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    expected = adapted.merge_and_unload().model.layers[1].mlp.down_proj.weight.to(torch.bfloat16)
    merged = load(folder, tmp_path / "adapter", torch.bfloat16).layers[1].mlp.down_proj.weight
    assert torch.equal(merged, expected)


def test_an_adapter_of_a_wider_model_is_refused(tmp_path: Path, folder: Path) -> None:
    adapter_for(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = weights_of(file)
    save_file({key: value.repeat(1, 3) if "lora_A" in key else value for key, value in weights.items()}, file)
    refused(folder, tmp_path / "adapter", "adapter-mismatch", "different base model", "down_proj", "192")


def test_an_adapter_of_a_deeper_model_is_refused(tmp_path: Path, folder: Path) -> None:
    adapter_for(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = weights_of(file)
    save_file({key.replace("layers.3", "layers.9"): value for key, value in weights.items()}, file)
    refused(folder, tmp_path / "adapter", "adapter-mismatch", "layers.9")


def test_an_adapter_that_lacks_some_of_its_weights_is_refused(tmp_path: Path, folder: Path) -> None:
    adapter_for(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = weights_of(file)
    save_file({key: value for key, value in weights.items() if "layers.2" not in key}, file)
    refused(folder, tmp_path / "adapter", "adapter-mismatch", "layers.2")


def test_an_adapter_of_another_architecture_is_refused(tmp_path: Path, folder: Path) -> None:
    other = save_checkpoint(tmp_path / "gpt2", "gpt2")
    adapter_for(AutoModelForCausalLM.from_pretrained(other), tmp_path / "adapter", target_modules=["c_attn"])
    refused(folder, tmp_path / "adapter", "adapter-mismatch")


def test_prompts_cannot_be_merged(tmp_path: Path, folder: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder)
    get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).save_pretrained(
        tmp_path / "adapter"
    )
    refused(folder, tmp_path / "adapter", "adapter-unsupported", "PROMPT_TUNING")


def test_pickles_and_damaged_or_missing_files_are_refused(tmp_path: Path, folder: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter_for(AutoModelForCausalLM.from_pretrained(folder), adapter)
    file = adapter / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    refused(folder, adapter, "truncated-file", file.name)
    file.unlink()
    torch.save({}, adapter / "adapter_model.bin")
    refused(folder, adapter, "unsafe-format", "adapter_model.bin")
    file.write_bytes(whole)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "NOTHING"}))
    refused(folder, adapter, "adapter-unsupported", "NOTHING")
    (adapter / "adapter_config.json").unlink()
    refused(folder, adapter, "adapter-missing", "adapter_config.json")
    refused(folder, tmp_path / "none", "model-missing")


def test_an_adapter_cannot_choose_a_module_to_import(tmp_path: Path, folder: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter_for(AutoModelForCausalLM.from_pretrained(folder), adapter)
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"megatron_config": {"a": 1}, "megatron_core": "evil_module"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        refused(folder, adapter, "adapter-unsupported", "megatron_config")
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"megatron_config": None}))
        load(folder, adapter)
    assert not (tmp_path / "ran").exists()


def of_kind(adapter: Path, **changes: object) -> None:
    """Change the adapter's config."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | changes))


def test_a_pattern_that_would_never_end_is_refused(tmp_path: Path, folder: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter_for(AutoModelForCausalLM.from_pretrained(folder), adapter)
    for changes in ({"target_modules": "(.*a*)*$"}, {"rank_pattern": {"(.*a*)*": 4}}, {"modules_to_save": ["(.*a*)*"]}):
        of_kind(adapter, **{"target_modules": ["q_proj"], "rank_pattern": {}, "modules_to_save": None} | changes)
        refused(folder, adapter, "adapter-unsupported", next(iter(changes)), "plain module names")


def test_adapters_that_name_files_elsewhere_open_none(tmp_path: Path, folder: Path) -> None:
    """SHADOW and XLORA load what their config names, also pickles and also outside the roots."""
    adapter, outside = tmp_path / "adapter", tmp_path / "outside"
    adapter_for(AutoModelForCausalLM.from_pretrained(folder), adapter)
    outside.mkdir()
    torch.save({}, outside / "adapter_model.bin")
    shutil.copyfile(adapter / "adapter_config.json", outside / "adapter_config.json")
    paths = {"adapters": {"0": str(outside)}, "shadow_model": str(outside / "adapter_model.bin")}
    with opened() as files:
        for kind in ("SHADOW", "XLORA"):
            of_kind(adapter, peft_type=kind, hidden_size=32, **paths)
            refused(folder, adapter, "adapter-unsupported", kind)
        of_kind(
            adapter, peft_type="LORA", hidden_size=None, **dict.fromkeys(paths), base_model_name_or_path=str(outside)
        )
        load(folder, adapter)
    assert adapter / "adapter_config.json" in files
    assert not [file for file in files if file.is_relative_to(outside)]


def test_a_model_folder_with_an_adapter_is_refused_and_leads_nowhere(tmp_path: Path, folder: Path) -> None:
    """transformers goes on to the base model that such a file names, wherever that is."""
    outside = save_checkpoint(tmp_path / "outside", seed=3)
    adapter_for(AutoModelForCausalLM.from_pretrained(outside), tmp_path / "adapter")
    for file in (tmp_path / "adapter").iterdir():
        shutil.copyfile(file, folder / file.name)
    of_kind(folder, base_model_name_or_path=str(outside))
    uri = f"file://{folder}"
    with opened() as files:
        for _ in ("with a config", "without"):
            with pytest.raises(RunError) as caught:
                load_model(uri, None, roots=(folder,), device="cpu", dtype=torch.float32, cache_dir=tmp_path / "cache")
            assert caught.value.code == "adapter-unsupported", caught.value
            (folder / "config.json").unlink(missing_ok=True)
    assert not [file for file in files if file.is_relative_to(outside)]


def test_a_gguf_file_beside_an_adapter_leads_nowhere(tmp_path: Path) -> None:
    expected = write_gguf(tmp_path / "models" / "tiny.gguf")
    outside = save_checkpoint(tmp_path / "outside")
    adapter_for(AutoModelForCausalLM.from_pretrained(outside), tmp_path / "models")
    of_kind(tmp_path / "models", base_model_name_or_path=str(outside))
    (tmp_path / "models" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_file": str(outside)}))
    with opened() as files:
        model, _ = load_model(
            f"file://{tmp_path}/models/tiny.gguf", None, roots=(tmp_path / "models",), device="cpu",
            dtype=torch.float32, cache_dir=tmp_path / "cache",
        )  # fmt: skip
    torch.testing.assert_close(model(IDS).last_hidden_state, expected.model(IDS).last_hidden_state)
    assert not [file for file in files if file.is_relative_to(outside) or file.name == "adapter_config.json"]


def test_a_tokenizer_is_never_one_from_elsewhere(tmp_path: Path, folder: Path) -> None:
    other = save_checkpoint(tmp_path / "outside", "llama", tokenizer="word_piece")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    elsewhere = {name: str(other / "tokenizer.json") for name in ("tokenizer_file", "vocab_file", "gguf_file")}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | elsewhere))
    expected = (folder / "tokenizer.json").read_text()
    with opened() as files:
        _, tokenizer = load_model(
            f"file://{folder}", None, roots=(folder,), device="cpu", dtype=torch.float32, cache_dir=tmp_path / "cache"
        )
    assert json.loads(tokenizer.backend_tokenizer.to_str()) == json.loads(expected)
    assert not [file for file in files if file.is_relative_to(other)]
