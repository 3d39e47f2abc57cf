"""What a feature does: its direction taken out, or doubled, where it fires, and what becomes of what comes after.

    ablate   x <- x - f d        amplify   x <- x + f d        at the tokens where the feature fires

The effect on the next token is KL(p || p') in nats, p being the model's own distribution there. The null are random
directions of the norm of d: an edit of that size does something whatever its direction. For a random direction plus
and minus are alike, so one null serves both edits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from workers.circuits.attribution import Reading
from workers.circuits.places import Batch, Target, batches, replacing, skipping, watching
from workers.crosscoder.code import Code
from workers.crosscoder.regress import take_rows


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
    known, column = reading.dictionaries[target.place], target.column
    generator = torch.Generator().manual_seed(seed)
    random = normalize(torch.randn(directions, len(known.mean), generator=generator), dim=1)
    own = known.decoder[column]
    edits = torch.cat([-own[None], own[None], random.to(own) * own.norm()])
    added = torch.cat([torch.zeros_like(own)[None], edits])[:, None]
    sums = torch.zeros(len(edits), folds, dtype=torch.float64)
    count, change = torch.zeros(folds, dtype=torch.float64), torch.zeros(0)
    wanted = [i for i in range(len(reading.passages)) if len(target.tokens[i])]
    for done, number in enumerate(wanted):
        tokens, fold = target.tokens[number].to(reading.device), reading.passages[number].fold
        # No token sees what comes after it, so what is behind the last one need not be read.
        strength = _strength(reading, number, column)[None, : int(tokens.max()) + 1, None]
        hidden = _hidden(reading, target.place, number, strength * added)[:, tokens]
        logits = head(hidden[0]).float()
        before = logits.log_softmax(1)
        for i in range(len(edits)):
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


@torch.no_grad()
def _hidden(reading: Reading, name: str, number: int, added: Tensor) -> Tensor:
    """Last hidden states of a passage's first t tokens, [edits, t, d], with each of `added` put on a place."""
    place, ids = reading.place(name), reading.passages[number].ids[None, : added.shape[1]]
    with watching([place]) as seen:
        reading.forward(Batch([number], ids, torch.ones_like(ids)))
    edited = seen[name] + (added / place.factor).to(seen[name].dtype)
    copies = ids.expand(len(added), -1)
    with skipping(reading.skippable.get(name, ())), replacing(place.module, lambda _output: edited):
        output: Any = reading.forward(Batch([number], copies, torch.ones_like(copies)))
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
