"""Causal effects: a feature's direction is removed or doubled where it fires, and the output compared.

    ablate   x <- x - f d        amplify   x <- x + f d        at the tokens where the feature fires

The effect on the next token is KL(p || p') in nats, with p the unedited model's distribution. The null uses random
directions of the norm of d, because an edit of that size has an effect whatever its direction. For a random direction
the sign does not matter, so both edits share one null.

If a signature's contrast set has two answers to each text, the same edits are made at the text's tokens, and the effect
is measured on the margin: the logit of the positive answer's first token minus that of the negative one's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.regress import take_rows
from featurewatch.workers.dependencies.reading import Batch, Reading, Target, replacing, skipping, watching


@dataclass
class Effects:
    """Sums over the target's tokens by fold, float64."""

    count: Tensor
    """[K] tokens"""
    ablate: Tensor
    """[K] KL"""
    amplify: Tensor
    """[K] KL"""
    random: Tensor
    """[directions, K] KL"""
    logits: Tensor
    """[vocabulary] centred difference between the logits with and without the feature, summed over all tokens"""


@torch.no_grad()
def causal_effects(
    reading: Reading,
    head: Callable[[Tensor], Tensor],
    target: Target,
    *,
    directions: int,
    folds: int,
    seed: int,
    tick: Callable[[float], None] = lambda share: None,
) -> Effects:
    """Effects of a target's feature, edited at the target's hook point and tokens.

    head: maps last hidden states [n, d] to logits [n, vocabulary]; the model must be causal. tick: see `attribute`.
    """
    added = _edits(reading, target.hook_point, target.column, directions, seed)
    sums = torch.zeros(len(added) - 1, folds, dtype=torch.float64)
    count, change = torch.zeros(folds, dtype=torch.float64), torch.zeros(0)
    wanted = [i for i in range(len(reading.passages)) if len(target.tokens[i])]
    for done, number in enumerate(wanted):
        tokens, fold = target.tokens[number].to(reading.device), reading.passages[number].fold
        # The model is causal, so tokens after the last one need not be read.
        until = int(tokens.max()) + 1
        ids, strength = reading.passages[number].ids[:until], strengths(reading, number, target.column)[:until]
        stream = _stream(reading, target.hook_point, ids)
        hidden = _edited(reading, target.hook_point, ids, stream, strength, added)[:, tokens]
        logits = head(hidden[0]).float()
        before = logits.log_softmax(1)
        for i in range(len(sums)):
            after = head(hidden[i + 1]).float()
            if i == 0:
                difference = (logits - after).sum(0)
                change = difference if not len(change) else change + difference
            kl = (before.exp() * (before - after.log_softmax(1))).sum(1)
            sums[i, fold] += float(kl.double().sum())
        count[fold] += len(tokens)
        tick((done + 1) / len(wanted))
    return Effects(count, sums[0], sums[1], sums[2:], change - change.mean() if len(change) else change)


def strengths(reading: Reading, number: int, column: int) -> Tensor:
    """The feature's activation at each token of a passage, 0 without a code: [t]."""
    passage, device = reading.passages[number], reading.code.values.device
    strength = reading.code.values.new_zeros(len(passage.ids))
    strength[passage.tokens.to(device)] = activations(take_rows(reading.code, passage.rows.to(device)), column)
    return strength


def activations(code: Code, column: int) -> Tensor:
    """One column of a code: [n]."""
    at = torch.arange(code.n, device=code.latents.device).repeat_interleave(code.indptr.diff())
    own = code.latents == column
    values = code.values.new_zeros(code.n)
    values[at[own]] = code.values[own]
    return values


class Answers(NamedTuple):
    """A text with two answers."""

    ids: Tensor
    """int64 [t] of the text, up to the answer"""
    positive: int
    """First token of the positive answer"""
    negative: int


@torch.no_grad()
def answer_margins(
    reading: Reading,
    head: Callable[[Tensor], Tensor],
    hook_point: str,
    column: int,
    texts: Sequence[Answers],
    *,
    directions: int,
    seed: int,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """Margins [3 + directions, texts]: unedited, without the feature, with the feature doubled, random directions.

    The feature is read at the text's tokens by its read-out, because the family's code does not cover these texts.
    `check` is called before each text, and may raise.
    """
    added = _edits(reading, hook_point, column, directions, seed)
    dictionary, margins = reading.dictionaries[hook_point], []
    for text in texts:
        check()
        stream = _stream(reading, hook_point, text.ids)
        strength = dictionary.read(stream[0] * reading.hook_point(hook_point).factor, column).clamp_min(0)
        logits = head(_edited(reading, hook_point, text.ids, stream, strength, added)[:, -1]).double()
        margins.append(logits[:, text.positive] - logits[:, text.negative])
    return torch.stack(margins, 1).cpu()


def _edits(reading: Reading, hook_point: str, column: int, directions: int, seed: int) -> Tensor:
    """What each edit adds per unit of activation: 0, -d, d, random directions of the same norm: [3 + directions, d]."""
    own = reading.dictionaries[hook_point].decoder[column]
    generator = torch.Generator().manual_seed(seed)
    random = normalize(torch.randn(directions, len(own), generator=generator), dim=1)
    return torch.cat([torch.zeros_like(own)[None], -own[None], own[None], random.to(own) * own.norm()])


def _stream(reading: Reading, hook_point: str, ids: Tensor) -> Tensor:
    """Output of a hook point's module for a text [t]: [1, t, d]."""
    with watching([reading.hook_point(hook_point)]) as seen:
        reading.forward(Batch([], ids[None], torch.ones_like(ids[None])))
    return seen[hook_point]


def _edited(reading: Reading, name: str, ids: Tensor, stream: Tensor, strength: Tensor, added: Tensor) -> Tensor:
    """Last hidden states [edits, t, d] of a text [t], with strength [t] times each row of `added` at a hook point.

    stream: the unedited output of the hook point's module.
    """
    hook_point, copies = reading.hook_point(name), ids.expand(len(added), -1)
    change = strength[None, :, None] * added[:, None] / hook_point.factor
    edited = stream + change.to(stream.dtype)
    with skipping(reading.skippable.get(name, ())), replacing(hook_point.module, lambda _output: edited):
        output: Any = reading.forward(Batch([], copies, torch.ones_like(copies)))
    hidden: Tensor = output.last_hidden_state
    return hidden
