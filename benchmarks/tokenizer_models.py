"""Tiny Llamas that carry planted concepts of the text, whatever their tokenizer, width and depth.

A concept is a property of the text up to a position, so it is the same for every tokenizer with a token that ends
there. Each is written to the residual stream along one of the model's own directions:

- *last*: the last character is a particular one. In the embedding of every token that ends with it.
- *before*: the second-to-last character belongs to a particular group. A token of several characters has it in its
  embedding; a single-character token gets it from the previous token, through a head of the first layer.
- *pair*: both together, for some pairs. Written by neurons of a later MLP, so that no earlier layer has them.
- *own*: the token is in a random subset of the vocabulary. Only that model has it.

The head attends by position alone: with k = 1 and q = exp(-i theta delta) in each pair of rotary dimensions, its logits
are sum cos theta (distance - delta), largest at distance delta. delta is 1 for single-character tokens and 0 for
others, whose embeddings cancel in advance what the head then adds. All embeddings have the same norm, so RMSNorm only
scales. The remaining weights are small and random, and write outside the planted directions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NORM = 12.0
"""of every embedding; a concept has 1"""
NOISE = 0.2
"""Norm of the token-specific part of an embedding"""
FLAG = 0.2
"""What an embedding has of the direction that says that its token is a single character"""
STEEP, THRESHOLD = 20.0, 1.3
"""of the neurons that join two concepts"""
SHARPNESS = 150.0
"""of the head: neighbours of the place that it looks at get less than 1 part in 10^6"""
HEADS = 4


@dataclass(frozen=True)
class Concepts:
    """The planted concepts, numbered `last`, then `before`, then `pairs`."""

    last: list[str]
    """characters"""
    groups: int
    """`before`: character i of `last` is of group i % groups; other characters are of none"""
    pairs: list[tuple[int, int]]
    """(index in `last`, group)"""

    def __len__(self) -> int:
        return len(self.last) + self.groups + len(self.pairs)

    @property
    def late(self) -> range:
        """The concepts that a later layer writes."""
        return range(len(self.last) + self.groups, len(self))

    def of(self, before: str, last: str) -> list[int]:
        """Concepts of a place in the text where these two characters are the last; `before` may be empty."""
        i, j = self.index(last), self.group(before)
        found = [i] if i is not None else []
        found += [len(self.last) + j] if j is not None else []
        pair = (i, j)
        return found + ([self.late[0] + self.pairs.index(pair)] if pair in self.pairs else [])  # type: ignore[arg-type]

    def index(self, character: str) -> int | None:
        return self.last.index(character) if character and character in self.last else None

    def group(self, character: str) -> int | None:
        i = self.index(character)
        return None if i is None else i % self.groups

    def table(self, places: Iterable[tuple[str, int]]) -> sparse.csr_array:
        """0/1 [positions, concepts]; places: (text, offset that a token ends at)."""
        rows = [self.of(text[max(end - 2, 0) : end - 1], text[end - 1]) for text, end in places]
        indptr = np.cumsum([0, *map(len, rows)])
        indices = np.array([i for row in rows for i in row], dtype=np.int64)
        return sparse.csr_array((np.ones(len(indices)), indices, indptr), shape=(len(rows), len(self)))


def choose(
    places: Sequence[tuple[str, int]], rng: np.random.Generator, *, last: int, groups: int, pairs: int, free: int,
    most_of_part: float,
) -> tuple[Concepts, np.ndarray]:  # fmt: skip
    """Concepts of the text, and `free` of them that are part of no pair.

    None is much rarer than 1 in 100 positions, and no pair is more than `most_of_part` of one of its parts.
    """
    n = len(places)
    ends = [(text[max(end - 2, 0) : end - 1], text[end - 1]) for text, end in places]
    characters, counts = np.unique([character for _, character in ends], return_counts=True)
    order = np.argsort(-counts)
    usual = [str(characters[i]) for i in order if 0.006 * n <= counts[i] <= 0.12 * n][:last]
    singles = Concepts(usual, groups, []).table(places)
    count = singles.sum(0)
    both = (singles[:, : len(usual)].T @ singles[:, len(usual) :]).toarray()
    share = both / np.minimum(count[: len(usual), None], count[None, len(usual) :])
    apart = np.sort(rng.permutation(len(count))[:free])
    fits = (both >= 0.008 * n) & (share <= most_of_part)
    fits[apart[apart < len(usual)]] = False
    fits[:, apart[apart >= len(usual)] - len(usual)] = False
    found = np.argwhere(fits)
    chosen = sorted((int(i), int(j)) for i, j in found[rng.permutation(len(found))[:pairs]])
    return Concepts(usual, groups, chosen), rng.permutation(apart)


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Byte-level BPE, as in GPT-2 and Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@dataclass(frozen=True)
class Plan:
    """One model."""

    width: int
    depth: int
    late_layer: int
    """whose MLP writes the pairs"""
    strength: np.ndarray
    """[concepts] at which each is written"""
    own: list[np.ndarray]
    """token ids of each concept that only this model has"""
    seed: int


def own_sets(
    tokens: np.ndarray, vocabulary: int, count: int, rate: float, rng: np.random.Generator
) -> list[np.ndarray]:
    """Disjoint random sets of token ids, each of about `rate` of the tokens [n] of a corpus.

    Of the rarer half of what occurs, so that none is a matter of one token.
    """
    counts = np.bincount(tokens, minlength=vocabulary)
    some = rng.permutation(np.flatnonzero((counts > 0) & (counts <= 0.004 * len(tokens))))
    ends = np.searchsorted(counts[some].cumsum(), rate * len(tokens) * np.arange(1, count + 1))
    return np.split(some[: ends[-1]], ends[:-1])


def save_model(folder: Path, tokenizer: Tokenizer, concepts: Concepts, plan: Plan) -> Path:
    """A Hugging Face folder with the model and its tokenizer, in float32."""
    torch.manual_seed(plan.seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=plan.width, num_hidden_layers=plan.depth,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, intermediate_size=2 * plan.width, rope_theta=10.0,
        max_position_embeddings=1024, attention_bias=True, mlp_bias=True, pad_token_id=0, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        _plant(model, tokenizer, concepts, plan)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def _plant(model: LlamaForCausalLM, tokenizer: Tokenizer, concepts: Concepts, plan: Plan) -> None:
    width, body = plan.width, model.model
    for parameter in body.layers.parameters():
        parameter.normal_(0, 0.03) if parameter.dim() == 2 else None
    for layer in body.layers:  # biases of zero where nothing is planted
        for module in (*layer.self_attn.children(), *layer.mlp.children()):
            if isinstance(module, torch.nn.Linear):
                module.bias.zero_()
    directions = torch.linalg.qr(torch.randn(width, width))[0].T
    n, m = len(concepts), len(concepts) + len(plan.own)
    if m + 2 > width:
        raise ValueError(f"{m} concepts need a width of more than {m + 2}")
    written, own, single, filler, rest = directions.split([n, m - n, 1, 1, width - m - 2])
    for layer in body.layers:  # what is random stays out of the way of what is planted
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            weight.sub_(written.T @ (written @ weight))
    strength = torch.tensor(plan.strength, dtype=torch.float32)
    model.model.embed_tokens.weight.copy_(
        _embedding(tokenizer, concepts, plan, written, own, single[0], filler[0], rest)
    )
    _plant_head(body.layers[0].self_attn, concepts, written, strength, single[0])
    _plant_neurons(body.layers[plan.late_layer].mlp, concepts, written, strength)


def _embedding(
    tokenizer: Tokenizer, concepts: Concepts, plan: Plan, written: Tensor, own: Tensor, single: Tensor, filler: Tensor,
    rest: Tensor,
) -> Tensor:  # fmt: skip
    """[vocabulary, width], every row of norm NORM."""
    size, decoder, first = tokenizer.get_vocab_size(), decoders.ByteLevel(), len(concepts.last)
    rows = torch.randn(size, len(rest)) @ rest * (NOISE / len(rest) ** 0.5)
    for token in range(size):
        text = decoder.decode([tokenizer.id_to_token(token)])
        if not text.isascii() or not text:
            continue
        last, group = concepts.index(text[-1]), concepts.group(text[-1])
        if last is not None:
            rows[token] += float(plan.strength[last]) * written[last]
        if len(text) == 1:
            rows[token] += FLAG * single
            continue
        before = concepts.group(text[-2])
        if before is not None:
            rows[token] += float(plan.strength[first + before]) * written[first + before]
        if group is not None:
            rows[token] -= float(plan.strength[first + group]) * written[first + group]
    for direction, tokens in zip(own, plan.own, strict=True):
        rows[torch.from_numpy(tokens)] += direction
    return rows + (NORM**2 - rows.square().sum(1, keepdim=True)).sqrt() * filler


def _plant_head(
    attention: torch.nn.Module, concepts: Concepts, written: Tensor, strength: Tensor, single: Tensor
) -> None:
    """The first head: tokens of one character take over the group of the last character of the token before them."""
    width, size = attention.q_proj.weight.shape[1], attention.head_dim
    unit = NORM / width**0.5  # coordinates of a normalised embedding, times this, are those of the embedding
    theta = 10.0 ** (-torch.arange(0, size, 2) / size)
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        projection.weight[:size] = 0
        projection.bias[:size] = 0
    attention.o_proj.weight[:, :size] = 0
    half = size // 2
    there = SHARPNESS * size**0.5 / half  # logits are divided by sqrt(size)
    stay = torch.cat([torch.ones(half), torch.zeros(half)]) * there
    step = torch.cat([theta.cos(), -theta.sin()]) * there
    attention.k_proj.bias[:half] = 1
    attention.q_proj.bias[:size] = stay
    attention.q_proj.weight[:size] = torch.outer(step - stay, single) * unit / FLAG
    first = len(concepts.last)
    for i in range(first):
        group = i % concepts.groups
        attention.v_proj.weight[group] += written[i] * unit / strength[i]
    for group in range(concepts.groups):
        attention.o_proj.weight[:, group] = written[first + group] * strength[first + group]


def _plant_neurons(mlp: torch.nn.Module, concepts: Concepts, written: Tensor, strength: Tensor) -> None:
    """The first neurons: one for each pair, that fires where both of its parts are there."""
    unit = NORM / mlp.gate_proj.weight.shape[1] ** 0.5
    n = len(concepts.pairs)
    mlp.up_proj.weight[:n], mlp.up_proj.bias[:n] = 0, 1
    mlp.gate_proj.bias[:n] = -STEEP * THRESHOLD
    for neuron, (i, group) in enumerate(concepts.pairs):
        j = len(concepts.last) + group
        mlp.gate_proj.weight[neuron] = STEEP * unit * (written[i] / strength[i] + written[j] / strength[j])
        number = concepts.late[neuron]
        mlp.down_proj.weight[:, neuron] = written[number] * strength[number] / (STEEP * (2 - THRESHOLD))
