"""What a feature does: its direction taken out, or doubled, where it fires, and what becomes of what comes after.

    ablate   x <- x - f d        amplify   x <- x + f d        at the tokens where the feature fires

The effect on the next token is KL(p || p') in nats, p being the model's own distribution there. The null are random
directions of the norm of d: an edit of that size does something whatever its direction. For a random direction plus
and minus are alike, so one null serves both edits.

Where a signature's contrast set holds two answers to each text, the same edits are made at the text's tokens, and what
counts is the margin: the logit of the positive answer's first token less the negative one's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.regress import take_rows
from featurewatch.workers.dependencies.attribution import Reading
from featurewatch.workers.dependencies.places import Batch, Target, batches, replacing, skipping, watching


@dataclass
class Effects:
    """Sums over the target's tokens, by fold, float64."""

    count: Tensor
    """[K] tokens"""
    ablate: Tensor
    """[K] KL"""
    amplify: Tensor
    """[K] KL"""
    random: Tensor
    """[directions, K] KL"""
    logits: Tensor
    """[vocabulary] logits less those without the feature, their mean taken out; summed over all tokens"""


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
    """Effects of a target's feature, edited at the target's own place and tokens.

    head: last hidden states [n, d] of `reading.model`, which must be causal, -> logits [n, vocabulary]. `tick`: as for
    attributions.
    """
    added = _edits(reading, target.place, target.column, directions, seed)
    sums = torch.zeros(len(added) - 1, folds, dtype=torch.float64)
    count, change = torch.zeros(folds, dtype=torch.float64), torch.zeros(0)
    wanted = [i for i in range(len(reading.passages)) if len(target.tokens[i])]
    for done, number in enumerate(wanted):
        tokens, fold = target.tokens[number].to(reading.device), reading.passages[number].fold
        # No token sees what comes after it, so what is behind the last one need not be read.
        until = int(tokens.max()) + 1
        ids, strength = reading.passages[number].ids[:until], _strength(reading, number, target.column)[:until]
        hidden = _edited(reading, target.place, ids, _stream(reading, target.place, ids), strength, added)[:, tokens]
        logits = head(hidden[0]).float()
        before = logits.log_softmax(1)
        for i in range(len(sums)):
            after = head(hidden[i + 1]).float()
            if i == 0:
                moved = (logits - after).sum(0)
                change = moved if not len(change) else change + moved
            kl = (before.exp() * (before - after.log_softmax(1))).sum(1)
            sums[i, fold] += float(kl.double().sum())
        count[fold] += len(tokens)
        tick((done + 1) / len(wanted))
    return Effects(count, sums[0], sums[1], sums[2:], change - change.mean() if len(change) else change)


def _strength(reading: Reading, number: int, column: int) -> Tensor:
    """The feature's activation at each token of a passage: [t], 0 where there is no code."""
    passage, device = reading.passages[number], reading.code.values.device
    strength = reading.code.values.new_zeros(len(passage.ids))
    strength[passage.tokens.to(device)] = activations(take_rows(reading.code, passage.rows.to(device)), column)
    return strength


def activations(code: Code, column: int) -> Tensor:
    """One column of a code: [n]."""
    at = torch.arange(code.n, device=code.latents.device).repeat_interleave(code.indptr.diff())
    own = code.latents == column
    found = code.values.new_zeros(code.n)
    found[at[own]] = code.values[own]
    return found


class Answers(NamedTuple):
    """A text with two answers to it."""

    ids: Tensor
    """int64 [t] of the text, up to where an answer begins"""
    positive: int
    """First token of the positive answer"""
    negative: int


@torch.no_grad()
def answer_margins(
    reading: Reading,
    head: Callable[[Tensor], Tensor],
    place: str,
    column: int,
    asked: Sequence[Answers],
    *,
    directions: int,
    seed: int,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """Margins of texts [3 + directions, texts]: plain, without the feature, with twice of it, random directions.

    The feature is read at the text's tokens by its own read-out: the family's code has no part of these texts. `check`
    is called before each text, and may raise.
    """
    added = _edits(reading, place, column, directions, seed)
    known, margins = reading.dictionaries[place], []
    for text in asked:
        check()
        stream = _stream(reading, place, text.ids)
        strength = known.read(stream[0] * reading.place(place).factor, column).clamp_min(0)
        logits = head(_edited(reading, place, text.ids, stream, strength, added)[:, -1]).double()
        margins.append(logits[:, text.positive] - logits[:, text.negative])
    return torch.stack(margins, 1).cpu()


def _edits(reading: Reading, place: str, column: int, directions: int, seed: int) -> Tensor:
    """What is added where the feature is 1: nothing, -d, d, random directions of its norm: [1 + 2 + directions, d]."""
    own = reading.dictionaries[place].decoder[column]
    generator = torch.Generator().manual_seed(seed)
    random = normalize(torch.randn(directions, len(own), generator=generator), dim=1)
    return torch.cat([torch.zeros_like(own)[None], -own[None], own[None], random.to(own) * own.norm()])


def _stream(reading: Reading, place: str, ids: Tensor) -> Tensor:
    """Output of a place's module for a text [t]: [1, t, d]."""
    with watching([reading.place(place)]) as seen:
        reading.forward(Batch([], ids[None], torch.ones_like(ids[None])))
    return seen[place]


def _edited(reading: Reading, name: str, ids: Tensor, stream: Tensor, strength: Tensor, added: Tensor) -> Tensor:
    """Last hidden states of a text [t], [edits, t, d], with strength [t] times each of `added` put on a place, whose
    module gives `stream` there."""
    place, copies = reading.place(name), ids.expand(len(added), -1)
    put = strength[None, :, None] * added[:, None] / place.factor
    edited = stream + put.to(stream.dtype)
    with skipping(reading.skippable.get(name, ())), replacing(place.module, lambda _output: edited):
        output: Any = reading.forward(Batch([], copies, torch.ones_like(copies)))
    hidden: Tensor = output.last_hidden_state
    return hidden


@torch.no_grad()
def ablated(
    reading: Reading, place_name: str, columns: Sequence[int], targets: Sequence[Target], batch_tokens: int
) -> Tensor:
    """Mean pre-activation of targets with a feature taken out at a place, wherever it fires: [1 + columns, targets].

    The first row is with nothing taken out. This is what attributions are estimates of: activation patching.
    """
    place, known = reading.place(place_name), reading.dictionaries[place_name]
    sums = torch.zeros(1 + len(columns), len(targets), dtype=torch.float64)
    counts = torch.tensor([sum(map(len, target.tokens)) for target in targets]).clamp_min(1)
    wanted = [i for i in range(len(reading.passages)) if any(len(target.tokens[i]) for target in targets)]
    for batch in batches(reading.passages, wanted, batch_tokens):
        with watching(reading.places) as seen:
            reading.forward(batch)
        sums[0] += _read(reading, batch, targets, seen)
        x = seen[place_name]
        for row, column in enumerate(columns, start=1):
            taken = torch.zeros_like(x)
            for member, i in enumerate(batch.members):
                strength = _strength(reading, i, column)
                taken[member, : len(strength)] = strength[:, None] * known.decoder[column] / place.factor
            without = x - taken
            with (
                skipping(reading.skippable.get(place_name, ())),
                replacing(place.module, lambda _output, without=without: without),
                watching(reading.places) as seen,
            ):
                reading.forward(batch)
            sums[row] += _read(reading, batch, targets, seen)
    return sums / counts


def _read(reading: Reading, batch: Batch, targets: Sequence[Target], seen: dict[str, Tensor]) -> Tensor:
    """Sum of each target's pre-activations in a batch: [targets]."""
    sums = torch.zeros(len(targets), dtype=torch.float64)
    for t, target in enumerate(targets):
        for row, i in enumerate(batch.members):
            x = seen[target.place][row, target.tokens[i]] * reading.place(target.place).factor
            sums[t] += float(reading.dictionaries[target.place].read(x, target.column).double().sum())
    return sums
