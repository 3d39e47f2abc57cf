"""The logit lens from tensor files alone, against the models themselves; and models that have none."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import decoders
from transformers import AutoModel, AutoModelForCausalLM

from featurewatch.workers.activations.models.loading import load_tokenizer
from featurewatch.workers.activations.models.unembedding import Unembedding, promoted, read_unembedding, token_texts
from featurewatch.workers.errors import RunError
from tests.unit.activations.tiny import DECODERS, TOKENIZERS, save_checkpoint, weights_of


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_it_is_what_the_model_does(tmp_path: Path, name: str) -> None:
    folder = save_checkpoint(tmp_path / name, name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter.dim() == 1 and "layers" not in parameter_name and ".h." not in parameter_name:
            parameter.normal_(0.0 if "gemma" in name else 1.0, 0.3)
    model.float().save_pretrained(folder)
    rows = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    tops = promoted(rows, read_unembedding(folder), 5)
    expected = by_hand(model, rows)
    torch.testing.assert_close(tops.promoted_values, expected.topk(5).values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tops.demoted_values, expected.topk(5, largest=False).values, rtol=1e-4, atol=1e-5)
    assert torch.equal(tops.promoted, expected.topk(5).indices)
    assert torch.equal(tops.demoted, expected.topk(5, largest=False).indices)


def by_hand(model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """The derivative of the logits along each direction of unit norm, at a point where the norm divides by 1 and does
    not turn: orthogonal to the direction. Float64."""
    body = model.base_model
    norm = next(getattr(body, name) for name in ("norm", "ln_f", "final_layer_norm") if hasattr(body, name)).double()
    head = model.get_output_embeddings().double()
    rows = rows.double() / rows.double().norm(dim=1, keepdim=True)
    centred = rows - rows.mean(1, keepdim=True) if isinstance(norm, torch.nn.LayerNorm) else rows
    found = []
    for row in centred:
        point = torch.randn(len(row), dtype=torch.float64)
        if isinstance(norm, torch.nn.LayerNorm):
            point = point - point.mean()
        point = point - (point @ row) / (row @ row) * row
        point = point / point.square().mean().sqrt()
        _, moved = torch.func.jvp(lambda x: head(norm(x)), (point[None],), (row[None],))
        found.append(moved[0])
    logits = torch.stack(found)
    model.float()
    return (logits - logits.mean(1, keepdim=True)).float()


def test_blocks_and_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unembedding = read_unembedding(save_checkpoint(tmp_path / "m"))
    rows = torch.randn(3, 32)
    whole = promoted(rows, unembedding, 7, tokens=300)
    monkeypatch.setattr(Unembedding.blocks, "__defaults__", (37,))
    blockwise = promoted(rows, unembedding, 7, tokens=300)
    for one, other in zip(whole, blockwise, strict=True):
        torch.testing.assert_close(one, other)
    assert int(whole.promoted.max()) < 300
    assert promoted(rows, unembedding, 9, tokens=4).promoted.shape == (3, 4)
    calls: list[int] = []
    promoted(rows, unembedding, 1, check=lambda: calls.append(1))
    assert len(calls) == -(-400 // 37)


def test_half_precision_and_the_body_alone(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "gpt2", "gpt2")
    rows = torch.randn(2, 32)
    expected = promoted(rows, read_unembedding(folder), 3)
    AutoModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    found = promoted(rows, read_unembedding(folder), 3)
    torch.testing.assert_close(found.promoted_values, expected.promoted_values, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(("name", "why"), [("bert", "bert"), ("distilbert", "distilbert")])
def test_encoders_have_none(tmp_path: Path, name: str, why: str) -> None:
    none(save_checkpoint(tmp_path / name, name, tokenizer="word_piece"), None, f"a {why} model is unknown")


def test_a_body_without_its_head_has_none(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "llama")
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    none(folder, None, "has no head")
    weights = weights_of(folder / "model.safetensors")
    save_file({key: value for key, value in weights.items() if key != "norm.weight"}, folder / "model.safetensors")
    (folder / "config.json").write_text((folder / "config.json").read_text().replace(
        '"tie_word_embeddings": false', '"tie_word_embeddings": true'))  # fmt: skip
    none(folder, None, "has no final norm")


def none(folder: Path, adapter: Path | None, why: str) -> None:
    with pytest.raises(RunError) as caught:
        read_unembedding(folder, adapter)
    assert caught.value.code == "no-unembedding"
    assert why in caught.value.detail


def adapted(folder: Path, target: Path, **settings: object) -> torch.nn.Module:
    base = AutoModelForCausalLM.from_pretrained(folder)
    defaults = {"r": 2, "target_modules": ["v_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(base, LoraConfig(**(defaults | settings)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name or "lora" in name:
                parameter.normal_()
    model.save_pretrained(target)
    return model


def test_adapters(tmp_path: Path) -> None:
    folder, rows = save_checkpoint(tmp_path / "llama"), torch.randn(2, 32)
    plain = promoted(rows, read_unembedding(folder), 4)
    adapted(folder, tmp_path / "layers")
    same = promoted(rows, read_unembedding(folder, tmp_path / "layers"), 4)
    assert torch.equal(same.promoted, plain.promoted)
    model = adapted(folder, tmp_path / "head", modules_to_save=["lm_head"])
    own = model.base_model.model.lm_head.modules_to_save["default"].weight.detach()
    expected = (rows @ own.T).argsort(1, descending=True)[:, :4]
    assert torch.equal(promoted(rows, read_unembedding(folder, tmp_path / "head"), 4).promoted, expected)
    adapted(folder, tmp_path / "low-rank", target_modules=["v_proj", "lm_head"])
    none(folder, tmp_path / "low-rank", "The adapter changes lm_head")
    adapted(folder, tmp_path / "norm", modules_to_save=["model.norm"])
    none(folder, tmp_path / "norm", "The adapter changes model.norm.weight")
    adapted(folder, tmp_path / "embedding", target_modules=["v_proj", "embed_tokens"])
    assert torch.equal(promoted(rows, read_unembedding(folder, tmp_path / "embedding"), 4).promoted, plain.promoted)
    tied = save_checkpoint(tmp_path / "gemma", "gemma2")
    adapted(tied, tmp_path / "tied", target_modules=["v_proj", "embed_tokens"])
    none(tied, tmp_path / "tied", "The adapter changes model.embed_tokens")


@pytest.mark.parametrize("name", ["byte_level", "metaspace"])
def test_tokens_as_text(tmp_path: Path, name: str) -> None:
    made = TOKENIZERS[name]()
    if name == "metaspace":  # as Llama 2 decodes: a space at the very beginning is dropped
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        made.backend_tokenizer.decoder = decoders.Sequence(parts)
    made.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("The lazy dog", add_special_tokens=False)
    texts = token_texts(tokenizer, ids)
    joined = "".join(texts[one] for one in ids)
    assert joined.lstrip() == "The lazy dog"
    assert any(text.startswith(" ") for text in texts.values())
