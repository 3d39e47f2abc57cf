"""The linearised model: same values, other gradients, and nothing left behind."""

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, MixtralModel

from featurewatch.workers.dependencies.linear import linearised
from featurewatch.workers.errors import RunError
from tests.unit.activations.tiny import CONFIGS
from tests.unit.dependencies.small import body

IDS = torch.tensor([[5, 9, 200, 7, 31, 8], [4, 4, 17, 60, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])


@pytest.mark.parametrize("name", list(CONFIGS))
def test_values_stay_and_the_model_is_as_before_afterwards(name: str) -> None:
    model = body(name)
    before = model(input_ids=IDS, attention_mask=MASK).last_hidden_state
    with linearised(model):
        inside = model(input_ids=IDS, attention_mask=MASK).last_hidden_state
    after = model(input_ids=IDS, attention_mask=MASK).last_hidden_state
    real = MASK.bool()
    # An input of an activation that is nearly 0 takes the slope beside it.
    assert torch.allclose(inside[real], before[real], atol=1e-5)
    assert torch.equal(after[real], before[real])
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", ["llama", "gemma2", "olmo2"])
def test_without_biases_the_output_is_its_gradient_times_the_input(name: str) -> None:
    model = body(name)
    words = model.get_input_embeddings()(IDS).requires_grad_(True)
    with linearised(model):
        output = model(inputs_embeds=words, attention_mask=MASK).last_hidden_state[0, 4]
        for coordinate in (0, 7, 31):
            (gradient,) = torch.autograd.grad(output[coordinate], [words], retain_graph=True)
            assert torch.allclose((gradient * words).sum(), output[coordinate], rtol=1e-6, atol=1e-8)


def test_each_factor_of_a_gated_product_takes_half() -> None:
    model = body()
    mlp = model.layers[1].mlp
    x = torch.randn(32, dtype=torch.float64, requires_grad=True)
    gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    slope = torch.sigmoid(gate)  # silu(g) / g
    expected = mlp.down_proj.weight[3] @ (
        0.5 * (slope * up)[:, None] * mlp.gate_proj.weight + 0.5 * (slope * gate)[:, None] * mlp.up_proj.weight
    )
    with linearised(model):
        (found,) = torch.autograd.grad(mlp(x)[3], [x])
    assert torch.allclose(found, expected, rtol=1e-6)


def test_parts_that_are_not_known_are_refused_by_name() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = MixtralModel(MixtralConfig(**sizes, num_key_value_heads=2, vocab_size=50, num_local_experts=2))
    with pytest.raises(RunError, match=r"method-unsupported.*Use the method `gradient`"), linearised(model.eval()):
        pass
    model = body()
    model.layers[2].mlp.act_fn = nn.Sigmoid()
    with pytest.raises(RunError, match="not 0 at 0"), linearised(model):
        pass
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_norm_that_computes_something_else_is_refused() -> None:
    class OddRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(32, dtype=torch.float64)), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * x.abs()

    model = body()
    model.layers[0].input_layernorm = OddRMSNorm()
    with pytest.raises(RunError, match="does not compute what its name suggests"), linearised(model):
        pass
