"""PEFT adapters: merged exactly, whichever model they were trained on; those that do not fit are refused."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.unit.activations.tiny import save_checkpoint, weights_of
from workers.activations.models import load_model
from workers.errors import RunError

IDS = torch.arange(1, 20)[None]


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
        {"target_modules": r"model\.layers\.[12]\.mlp\.(up|down)_proj"},
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
    refused(folder, tmp_path / "adapter", "adapter-mismatch", "another base model", "down_proj", "192")


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
    refused(folder, adapter, "adapter-missing")
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
        load(folder, adapter)
    assert not (tmp_path / "ran").exists()
