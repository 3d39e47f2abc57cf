"""Tiny Llamas with planted dependencies: features that a later layer computes from known earlier ones.

Words of a small vocabulary have properties, each written by the embedding along its own direction. The last layer
writes new features:

- a *pair* if a word has two particular properties, by one neuron of the MLP;
- *before* if the previous word has a particular property, by a head that looks one token back.

In a rewired version the first pair is computed from two other properties, which occur together in exactly the same
words. The feature then fires on the same inputs with the same strength; only its inputs have changed.

The head attends by position alone, as in `tokenizer_models`. All embeddings have the same norm, so RMSNorm only scales.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NORM = 12.0
STEEP, THRESHOLD = 20.0, 1.3
SHARPNESS = 150.0
HEADS = 2
LAYERS = 2
UNKNOWN = "?"


@dataclass(frozen=True)
class Circuit:
    """Features are numbered: properties, then pairs, then `before`."""

    pairs: list[tuple[int, int]]
    """Pairs of properties; the first one can be rewired"""
    other: tuple[int, int]
    """Properties from which the rewired version computes the first pair"""
    before: int
    """The property of the previous word"""
    has: np.ndarray
    """bool [words, properties]"""
    words: list[str] = field(default_factory=list)

    @property
    def n_properties(self) -> int:
        return self.has.shape[1]

    def __len__(self) -> int:
        return self.n_properties + len(self.pairs) + 1

    def edges(self, rewired: bool) -> dict[int, set[int]]:
        """Feature -> the features that it is computed from."""
        pairs = [self.other if rewired and i == 0 else pair for i, pair in enumerate(self.pairs)]
        found = {self.n_properties + i: set(pair) for i, pair in enumerate(pairs)}
        return found | {len(self) - 1: {self.before}}

    def table(self, words: np.ndarray) -> np.ndarray:
        """0/1 [t, features] of one document of word numbers [t], as float32."""
        own = self.has[words]
        pairs = np.stack([own[:, a] & own[:, b] for a, b in self.pairs], 1)
        before = np.append(False, own[:-1, self.before])[:, None]
        return np.concatenate([own, pairs, before], 1).astype(np.float32)


def make_circuit(seed: int, pairs: int = 5, words: int = 120) -> Circuit:
    """Pair k combines properties 2k and 2k + 1; the last two properties are the alternative for the first pair."""
    rng = np.random.default_rng(seed)
    properties = 2 * pairs + 2
    has = np.zeros((words, properties), dtype=bool)
    others = (properties - 2, properties - 1)
    for word in range(words):
        # One in four has a pair; the rest has one or two properties that make none.
        chosen = rng.permutation(properties)[:2] if word % 4 else rng.integers(pairs) * 2 + np.arange(2)
        has[word, chosen] = True
        both, instead = has[word, :2].all(), has[word, list(others)].all()
        if both:
            has[word, list(others)] = True
        elif instead:
            has[word, others[1]] = False
    return Circuit([(2 * k, 2 * k + 1) for k in range(pairs)], others, 3, has, [f"w{i}" for i in range(words)])


def write_text(circuit: Circuit, documents: int, length: int, seed: int) -> list[np.ndarray]:
    """Documents of random words, as numbers [length]."""
    rng = np.random.default_rng(seed)
    return [rng.integers(len(circuit.words), size=length) for _ in range(documents)]


def make_tokenizer(circuit: Circuit) -> Tokenizer:
    """One token per word; token i is word i."""
    vocabulary = {word: i for i, word in enumerate([*circuit.words, UNKNOWN])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def make_model(circuit: Circuit, *, rewired: bool, width: int = 32, seed: int = 0) -> tuple[LlamaForCausalLM, Tensor]:
    """The model, and the direction of each feature, orthonormal [features, width]."""
    config = LlamaConfig(
        vocab_size=len(circuit.words) + 1, hidden_size=width, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, intermediate_size=2 * width, rope_theta=10.0, max_position_embeddings=256,
        attention_bias=True, mlp_bias=True, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval()
    n = len(circuit)
    if n + 2 > width:
        raise ValueError(f"{n} features need a width of more than {n + 1}")
    directions = torch.linalg.qr(torch.randn(width, width))[0].T
    written, filler, rest = directions.split([n, 1, width - n - 1])
    with torch.no_grad():
        for layer in model.model.layers:
            for name, parameter in layer.named_parameters():
                parameter.fill_(1.0) if "norm" in name else parameter.zero_()
        rows = torch.from_numpy(circuit.has).float() @ written[: circuit.n_properties]
        rows = torch.cat([rows, torch.zeros(1, width)])
        rows += 0.3 * torch.randn(len(rows), len(rest)) @ rest / len(rest) ** 0.5
        model.model.embed_tokens.weight.copy_(rows + (NORM**2 - rows.square().sum(1, keepdim=True)).sqrt() * filler)
        _plant_pairs(model.model.layers[-1].mlp, circuit, written, rewired)
        _plant_head(model.model.layers[-1].self_attn, circuit, written)
    return model, written


def save_model(folder: Path, circuit: Circuit, **options: bool | int) -> Path:
    """A Hugging Face folder with model and tokenizer."""
    model, _ = make_model(circuit, **options)  # type: ignore[arg-type]
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=make_tokenizer(circuit), unk_token=UNKNOWN).save_pretrained(folder)
    return folder


def _plant_pairs(mlp: torch.nn.Module, circuit: Circuit, written: Tensor, rewired: bool) -> None:
    """Neuron i is active if both properties of pair i are present, and writes 1."""
    unit = NORM / written.shape[1] ** 0.5  # coordinates of a normalised embedding, times this, are the embedding's
    for neuron, pair in enumerate(circuit.pairs):
        a, b = circuit.other if rewired and neuron == 0 else pair
        mlp.up_proj.bias[neuron] = 1
        mlp.gate_proj.bias[neuron] = -STEEP * THRESHOLD
        mlp.gate_proj.weight[neuron] = STEEP * unit * (written[a] + written[b])
        mlp.down_proj.weight[:, neuron] = written[circuit.n_properties + neuron] / (STEEP * (2 - THRESHOLD))


def _plant_head(attention: torch.nn.Module, circuit: Circuit, written: Tensor) -> None:
    """The first head copies the property from the previous token."""
    size, unit = attention.head_dim, NORM / written.shape[1] ** 0.5
    theta = 10.0 ** (-torch.arange(0, size, 2) / size)
    attention.k_proj.bias[: size // 2] = 1
    attention.q_proj.bias[:size] = torch.cat([theta.cos(), -theta.sin()]) * SHARPNESS * size**0.5 / (size // 2)
    attention.v_proj.weight[0] = written[circuit.before] * unit
    attention.o_proj.weight[:, 0] = written[len(circuit) - 1]
