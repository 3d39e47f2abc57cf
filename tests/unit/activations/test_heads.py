"""Whole models: the head gives what the model gives, and is not taken where it would not."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from featurewatch.workers.activations.models.heads import WholeModel, load_whole
from tests.unit.activations.tiny import DECODERS, save_checkpoint

IDS = torch.tensor([[5, 9, 200, 7, 31, 8]])


def load(folder: Path, adapter: str | None = None) -> WholeModel:
    roots = (folder.parent,)
    return load_whole(folder.as_uri(), adapter, roots=roots, device="cpu", cache_dir=folder.parent / "cache")


@pytest.mark.parametrize("name", DECODERS)
def test_body_and_head_are_the_model(name: str, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / name, name)
    whole = load(folder)
    assert whole.head is not None
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        expected = model(input_ids=IDS).logits[0]
        found = whole.head(whole.body(input_ids=IDS).last_hidden_state[0])
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in whole.body.parameters())


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_an_encoder_has_no_head(name: str, tmp_path: Path) -> None:
    whole = load(save_checkpoint(tmp_path / name, name, tokenizer="word_piece"))
    assert whole.head is None
    assert whole.body(input_ids=IDS).last_hidden_state.shape == (1, 6, 32)


def test_an_adapter_is_merged(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "llama")
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder),
        LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    tuned.save_pretrained(tmp_path / "adapter")
    whole = load(folder, (tmp_path / "adapter").as_uri())
    assert whole.head is not None
    with torch.no_grad():
        expected = tuned(input_ids=IDS).logits[0]
        found = whole.head(whole.body(input_ids=IDS).last_hidden_state[0])
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)
