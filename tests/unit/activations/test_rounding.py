"""Rounding of weights and activations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featurewatch.workers.activations.models.rounding import round_rows, round_weights, to_int8
from tests.unit.activations.tiny import make_model


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_int8_is_off_by_half_a_step_at_most_and_rounds_once(seed: int, size: float) -> None:
    x = size * torch.randn(7, 33, generator=torch.Generator().manual_seed(seed))
    rounded = to_int8(x)
    step = x.abs().amax(1, keepdim=True) / 127
    assert ((rounded - x).abs() <= step * 0.501).all()
    assert (rounded / step).round().unique().abs().max() <= 127
    assert torch.allclose(to_int8(rounded), rounded, rtol=1e-5, atol=0)


def test_rows_of_zeros_stay() -> None:
    assert (round_rows(torch.zeros(2, 4), "int8") == 0).all()
    assert (round_rows(torch.full((1, 3), 1.001), "bfloat16") == 1.0).all()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_int8_takes_linear_layers_by_output_channel(name: str) -> None:
    model, before = make_model(name), make_model(name)
    round_weights(model, "int8")
    changed = {
        key: value for key, value in model.state_dict().items() if not torch.equal(value, before.state_dict()[key])
    }
    assert changed, "nothing was rounded"
    assert not any("emb" in key or "wte" in key or "wpe" in key or "norm" in key or "bias" in key for key in changed)
    for key, value in changed.items():
        by_output = value.T if "c_" in key else value  # GPT-2 keeps its matrices the other way round
        scale = by_output.abs().amax(1, keepdim=True) / 127
        assert torch.allclose(by_output / scale, (by_output / scale).round(), atol=1e-3), key


def test_bfloat16_takes_all_weights() -> None:
    model = make_model("llama")
    round_weights(model, "bfloat16")
    for value in model.parameters():
        assert value.dtype == torch.float32
        assert torch.equal(value, value.bfloat16().float())
