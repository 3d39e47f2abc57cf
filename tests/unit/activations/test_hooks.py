"""Hook points of every architecture against what transformers says itself; what is not run at all."""

import pytest
import torch
from torch import nn

from featurewatch.workers.activations.models.hooks import (
    capture,
    choose_hook_points,
    drop_later_layers,
    find_hook_points,
    layer_stack,
    probe,
)
from featurewatch.workers.errors import RunError
from tests.unit.activations.tiny import CONFIGS, DECODERS, make_model

IDS = torch.randint(1, 400, (2, 24), generator=torch.Generator().manual_seed(3))


def body(name: str) -> nn.Module:
    return make_model(name).base_model


@torch.no_grad()
def read(model: nn.Module, names: list[str], **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    with capture(choose_hook_points(model, names)) as seen:
        model(**{"input_ids": IDS, **inputs})
    return seen


@torch.no_grad()
def hidden_states(model: nn.Module) -> tuple[torch.Tensor, ...]:
    return model(input_ids=IDS, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("name", CONFIGS)
def test_every_layer_has_all_three_kinds(name: str) -> None:
    three = ("resid_post", "mlp_out", "attn_out")
    names = [name for name in find_hook_points(body(name)) if name.startswith(three)]  # others are not in every model
    assert names == [f"{kind}.{layer}" for layer in range(4) for kind in three]


@pytest.mark.parametrize("name", CONFIGS)
def test_resid_post_is_the_hidden_state_after_the_layer(name: str) -> None:
    model = body(name)
    expected = hidden_states(model)
    seen = read(model, [f"resid_post.{layer}" for layer in range(3)])
    for layer in range(3):  # transformers gives the last one behind the final norm
        torch.testing.assert_close(seen[f"resid_post.{layer}"], expected[layer + 1])


@pytest.mark.parametrize("name", DECODERS)
def test_attention_and_mlp_add_up_to_what_the_layer_adds(name: str) -> None:
    model = body(name)
    stream = hidden_states(model)
    seen = read(model, ["attn_out.2", "mlp_out.2", "resid_post.2"])
    torch.testing.assert_close(
        stream[2] + seen["attn_out.2"] + seen["mlp_out.2"], seen["resid_post.2"], atol=1e-5, rtol=1e-5
    )
    assert seen["attn_out.2"].norm() > 0.01
    assert seen["mlp_out.2"].norm() > 0.01


def test_bert_reads_blocks_before_the_norm_of_their_sum() -> None:
    model = body("bert")
    layer = model.encoder.layer[1]
    stream = hidden_states(model)
    seen = read(model, ["attn_out.1", "mlp_out.1"])
    middle = layer.attention.output.LayerNorm(stream[1] + seen["attn_out.1"])
    torch.testing.assert_close(layer.output.LayerNorm(middle + seen["mlp_out.1"]), stream[2], atol=1e-5, rtol=1e-5)


def test_distilbert_reads_blocks_before_the_norm_of_their_sum() -> None:
    model = body("distilbert")
    layer = model.transformer.layer[1]
    stream = hidden_states(model)
    seen = read(model, ["attn_out.1", "mlp_out.1"])
    middle = layer.sa_layer_norm(stream[1] + seen["attn_out.1"])
    torch.testing.assert_close(layer.output_layer_norm(middle + seen["mlp_out.1"]), stream[2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_dropping_later_layers_changes_no_value_and_runs_none_of_them(name: str) -> None:
    names = ["resid_post.1", "mlp_out.1", "attn_out.0"]
    whole, short = body(name), body(name)
    expected = read(whole, names)
    later = list(layer_stack(short)[2][2:])
    runs: list[int] = []
    for layer in later:
        layer.register_forward_hook(lambda *_: runs.append(1))
    points = choose_hook_points(short, names)
    drop_later_layers(short, points)
    seen = read(short, names)
    assert runs == []
    assert len(layer_stack(short)[2]) == 2
    for hook_point in names:
        torch.testing.assert_close(seen[hook_point], expected[hook_point], rtol=0, atol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_to_the_right_changes_no_value(name: str) -> None:
    model = body(name)
    names = ["resid_post.2", "attn_out.2"]
    alone = read(model, names, input_ids=IDS[:1, :15])
    mask = torch.ones_like(IDS)
    mask[0, 15:] = 0
    ids = IDS.clone()
    ids[0, 15:] = 0
    padded = read(model, names, input_ids=ids, attention_mask=mask)
    for hook_point in names:
        torch.testing.assert_close(padded[hook_point][:1, :15], alone[hook_point], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_probe_proves_the_blocks_and_gives_widths(name: str) -> None:
    model = body(name)
    assert probe(model, choose_hook_points(model, ["attn_out.1", "resid_post.3"])) == {
        "attn_out.1": 32,
        "resid_post.3": 32,
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_probe_allows_for_the_rounding_of_half_precision(dtype: torch.dtype) -> None:
    model = body("llama").to(dtype)
    assert probe(model, choose_hook_points(model, ["mlp_out.2"])) == {"mlp_out.2": 32}


def test_probe_refuses_blocks_that_are_not_what_the_layer_adds() -> None:
    model = body("llama")
    layer = model.layers[1]
    inner = layer.mlp.forward
    layer.mlp.forward = lambda states: inner(states) + states.mean()
    layer.register_forward_hook(lambda _module, _inputs, output: output * 1.5)
    with pytest.raises(RunError) as caught:
        probe(model, choose_hook_points(model, ["mlp_out.1"]))
    assert caught.value.code == "unsupported-architecture"
    assert "layer 1" in caught.value.detail


def test_hooks_are_gone_afterwards_even_when_the_forward_fails() -> None:
    model = body("gpt2")
    with pytest.raises(IndexError), capture(choose_hook_points(model, ["resid_post.0", "mlp_out.0"])):
        model(input_ids=torch.tensor([[10_000]]))
    assert not any(module._forward_hooks for module in model.modules())


def test_an_unknown_hook_point_is_answered_with_those_there_are() -> None:
    with pytest.raises(RunError) as caught:
        choose_hook_points(body("llama"), ["resid_post.4"])
    assert caught.value.code == "unknown-hook-point"
    assert "resid_post.0 to resid_post.3" in caught.value.detail
    assert "attn_out.0 to attn_out.3" in caught.value.detail


def test_a_model_without_a_stack_of_layers_is_refused() -> None:
    with pytest.raises(RunError) as caught:
        find_hook_points(nn.Sequential(nn.Linear(2, 2)))
    assert caught.value.code == "unsupported-architecture"


def test_a_stack_that_shares_one_layer_is_refused() -> None:
    model = body("llama")
    model.layers = nn.ModuleList([model.layers[0]] * 3)
    with pytest.raises(RunError) as caught:
        find_hook_points(model)
    assert caught.value.code == "unsupported-architecture"
