"""The demo's edit takes out of a real (tiny) Llama exactly what it says, wherever it writes to its stream."""

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from featurewatch.workers.demo.ablation import ablate, ablation_matrix, writing_matrices

ALPHAS = torch.tensor([0.25, 0.5, 0.75, 1.0])


def tiny_llama(**changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    model = LlamaForCausalLM(LlamaConfig(**(shape | changes))).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def directions():
    """Four directions of other lengths than one, far from orthogonal."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(4, 32, generator=generator)
    rows[1] = rows[0] + rows[1]
    return rows * torch.tensor([[1.0], [2.0], [0.1], [5.0]])


@pytest.fixture
def tokens():
    return torch.randint(0, 97, (2, 20), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def hidden_states(model, tokens):
    return torch.stack(model.model(tokens, output_hidden_states=True).hidden_states[:-1])


@torch.no_grad()
def writes(model, tokens):
    """Name of each writing module -> (what it read, what it wrote) in one forward pass."""
    seen, hooks = {}, []
    for name, module in writing_matrices(model).items():
        hooks.append(
            module.register_forward_hook(
                lambda _module, args, output, name=name: seen.__setitem__(name, (args[0].clone(), output.clone()))
            )
        )
    model.model(tokens)
    for hook in hooks:
        hook.remove()
    return seen


def test_each_component_is_scaled_exactly_although_the_directions_lean_on_each_other(directions):
    M = ablation_matrix(directions, ALPHAS)
    vectors = torch.randn(32, 50, dtype=torch.float64)
    before = directions.double() @ vectors
    torch.testing.assert_close(directions.double() @ (M @ vectors), (1 - ALPHAS.double())[:, None] * before)
    # Nothing happens to what has no part along any of them.
    basis = torch.linalg.qr(directions.double().T)[0]
    apart = vectors - basis @ (basis.T @ vectors)
    torch.testing.assert_close(M @ apart, apart)


def test_subtracting_one_direction_after_the_other_would_not_do(directions):
    unit = directions.double() / directions.double().norm(dim=1, keepdim=True)
    naive = torch.eye(32, dtype=torch.float64) - (ALPHAS.double()[:, None] * unit).T @ unit
    vectors = torch.randn(32, 50, dtype=torch.float64)
    error = unit @ (naive @ vectors) - (1 - ALPHAS.double())[:, None] * (unit @ vectors)
    assert error.abs().max() > 0.1


@pytest.mark.parametrize("bias", [False, True])
def test_every_writer_of_a_llama_writes_the_remaining_share(directions, tokens, bias):
    model = tiny_llama(attention_bias=bias, mlp_bias=bias)
    edited = tiny_llama(attention_bias=bias, mlp_bias=bias)
    ablate(edited, directions, ALPHAS)
    original = writing_matrices(model)
    for name, (read, wrote) in writes(edited, tokens).items():
        with torch.no_grad():
            unedited = original[name](read)  # what the untouched matrix makes of the very same input
        remaining = wrote @ directions.T
        torch.testing.assert_close(remaining, (unedited @ directions.T) * (1 - ALPHAS), atol=1e-4, rtol=1e-4)


def test_the_stream_keeps_the_share_after_the_embedding_and_none_of_a_whole_ablation_anywhere(directions, tokens):
    before = hidden_states(tiny_llama(), tokens) @ directions.T
    edited = tiny_llama()
    ablate(edited, directions, ALPHAS)
    after = hidden_states(edited, tokens) @ directions.T
    torch.testing.assert_close(after[0], before[0] * (1 - ALPHAS), atol=1e-5, rtol=1e-4)
    scale = before.abs().mean(dim=(0, 1, 2))
    assert bool((after[..., 3].abs() < 1e-5 * scale[3]).all())
    assert bool((before[..., 3].abs().mean(dim=(1, 2)) > 0.1 * scale[3]).all())


def test_one_block_keeps_the_share_where_its_layers_are_linear(directions, tokens):
    """With the reading side fed the original stream, embedding + attention + MLP together are scaled exactly."""
    model, edited = tiny_llama(), tiny_llama()
    ablate(edited, directions, ALPHAS)
    seen, new = writes(model, tokens), writing_matrices(edited)
    names = ["model.embed_tokens", "model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"]
    with torch.no_grad():
        stream = sum(new[name](seen[name][0]) for name in names)
    original = hidden_states(model, tokens)[1]
    torch.testing.assert_close(sum(seen[name][1] for name in names), original, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(stream @ directions.T, (original @ directions.T) * (1 - ALPHAS), atol=1e-3, rtol=1e-4)


def test_expected_ratios_are_the_remaining_shares_and_spare_the_others(directions):
    others = torch.randn(5, 32, generator=torch.Generator().manual_seed(9))
    basis = torch.linalg.qr(directions.T)[0]
    others[0] -= basis @ (basis.T @ others[0])
    rows = torch.nn.functional.normalize(torch.cat([directions, others]).double(), dim=1)
    ratios = ((rows @ ablation_matrix(directions, ALPHAS).T) * rows).sum(1)
    torch.testing.assert_close(ratios[:4], 1 - ALPHAS.double())
    assert ratios[4] == pytest.approx(1)
    assert bool((ratios[5:] < 1).all())


def test_an_untouched_share_changes_nothing(directions, tokens):
    edited = tiny_llama()
    ablate(edited, directions, torch.zeros(4))
    torch.testing.assert_close(hidden_states(edited, tokens), hidden_states(tiny_llama(), tokens))


def test_directions_that_depend_on_each_other_and_empty_ones_are_refused(directions):
    with pytest.raises(ValueError, match="linearly dependent"):
        ablation_matrix(torch.cat([directions[:1], directions[:1] * 2]), ALPHAS[:2])
    with pytest.raises(ValueError, match="length zero"):
        ablation_matrix(torch.zeros(1, 32), ALPHAS[:1])


def test_a_model_that_is_built_otherwise_is_refused():
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(ValueError, match="BertModel has 0 of the 3"):
        writing_matrices(BertModel(config))
