"""Attribution: the contributions of features, tokens and remainders at earlier hook points to a target feature.

For a target j read at hook point h_j over positions P, and an earlier hook point h_i with activations
x = mean + bias + sum_i f_i d_i + error:

    A_ij  = mean over p in P of sum_p' f_i(p') <g_p(p'), d_i>        g_p(p') = d a_j(p) / d x_h_i(p')

The gradient g is the model's own (`gradient`); that of the linearised model (`relp`), whose contributions at a hook
point sum to a_j minus the contribution of later biases; or the mean along the straight path from the mean activation at
h_i (`integrated`; Sundararajan et al. 2017), whose contributions sum to a_j minus its value at the mean. A single
backward pass gives the sum over all positions of a document, so sums are kept per fold of documents.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from featurewatch.workers.crosscoder.regress import take_rows
from featurewatch.workers.dependencies.linear import linearised
from featurewatch.workers.dependencies.reading import (
    Batch,
    HookPoint,
    Reading,
    Target,
    batches,
    replacing,
    skipping,
    watching,
)

Method = Literal["relp", "gradient", "integrated"]
METHODS: tuple[Method, ...] = ("gradient", "relp", "integrated")
ENTRIES = 16_384
"""Active entries whose decoder rows are in memory at a time."""


@dataclass
class HookPointSums:
    """Contributions of a hook point to a target, summed over positions by fold: [K, m] and [K], float64."""

    features: Tensor
    bias: Tensor
    """The mean (except with `integrated`) and the bias of the reconstruction"""
    error: Tensor
    """The reconstruction error, at tokens with a code"""
    uncoded: Tensor
    """The whole activations at tokens without a code: first tokens, attention sinks, tokens that end elsewhere"""

    @staticmethod
    def zeros(folds: int, m: int) -> "HookPointSums":
        return HookPointSums(*(torch.zeros(size, dtype=torch.float64) for size in ((folds, m), folds, folds, folds)))


@dataclass
class Attribution:
    """All contributions to one target, summed over its positions by fold."""

    value: Tensor
    """[K] of the pre-activation"""
    count: Tensor
    """[K] positions"""
    constant: float
    """The read-out of an all-zero activation"""
    hook_points: dict[str, HookPointSums] = field(default_factory=dict)
    tokens: dict[int, Tensor] = field(default_factory=dict)
    """token id -> [K]"""


@dataclass(frozen=True)
class Options:
    """Settings of the attribution."""

    method: Method = "gradient"
    steps: int = 8
    """Points along the path of `integrated`"""
    batch_tokens: int = 1024
    folds: int = 20
    tokens: bool = True
    """Whether to attribute to input tokens too, with gradients down to the embeddings"""


def attribute(
    reading: Reading, targets: Sequence[Target], options: Options, tick: Callable[[float], None] = lambda share: None
) -> list[Attribution]:
    """Attributions of each target. `tick` is called after each batch with the fraction done, and may raise.

    The model's parameters must not require gradients. Raises RunError `method-unsupported` with `relp`.
    """
    attributions = [_empty(reading, target, options.folds) for target in targets]
    wanted = [i for i in range(len(reading.passages)) if any(len(target.tokens[i]) for target in targets)]
    total, done = sum(len(reading.passages[i].ids) for i in wanted), 0
    mode: AbstractContextManager[None] = linearised(reading.model) if options.method == "relp" else nullcontext()
    with mode, _tokens(reading.model) as embedded:
        for batch in batches(reading.passages, wanted, options.batch_tokens):
            ledger = _Ledger(reading, batch, options)
            if options.method == "integrated":
                _integrated(ledger, targets, attributions, embedded)
            else:
                _plain(ledger, targets, attributions, embedded)
            done += int(batch.mask.sum())
            tick(done / total)
    return attributions


def _empty(reading: Reading, target: Target, folds: int) -> Attribution:
    m = reading.code.m
    value, count = torch.zeros(folds, dtype=torch.float64), torch.zeros(folds, dtype=torch.float64)
    constant = reading.dictionaries[target.hook_point].constant(target.column)
    hook_points = {hook_point.name: HookPointSums.zeros(folds, m) for hook_point in reading.earlier(target.hook_point)}
    return Attribution(value, count, constant, hook_points)


@contextmanager
def _tokens(model: Any) -> Iterator[dict[str, Tensor]]:
    """While open, the token embeddings are a leaf of the graph, stored in the yielded dictionary as `x`."""
    embedded: dict[str, Tensor] = {}

    def leaf(output: Tensor) -> Tensor:
        embedded["x"] = output.detach().requires_grad_(True)
        return embedded["x"]

    with replacing(model.get_input_embeddings(), leaf):
        yield embedded


def _plain(ledger: "_Ledger", targets: Sequence[Target], found: list[Attribution], embedded: dict[str, Tensor]) -> None:
    """One forward pass, and one backward pass per target."""
    reading = ledger.reading
    with watching(reading.hook_points) as seen:
        reading.forward(ledger.batch)
    for target, into in zip(targets, found, strict=True):
        summed = ledger.read(target, seen, into)
        if summed is None:
            continue
        before = reading.earlier(target.hook_point)
        words = [embedded["x"]] if ledger.options.tokens else []
        inputs = [*(seen[hook_point.name] for hook_point in before), *words]
        if not inputs:
            continue
        gradients = torch.autograd.grad(summed, inputs, retain_graph=True, allow_unused=True)
        if words:
            ledger.add_tokens(gradients[-1], words[0].detach(), into)
        for hook_point, gradient in zip(before, gradients[: len(before)], strict=True):
            if gradient is not None:
                ledger.add(
                    hook_point,
                    gradient,
                    seen[hook_point.name].detach(),
                    into.hook_points[hook_point.name],
                    centred=False,
                )


def _integrated(
    ledger: "_Ledger", targets: Sequence[Target], found: list[Attribution], embedded: dict[str, Tensor]
) -> None:
    """Per hook point, `steps` forward passes from points along the path, each with a backward pass per target."""
    reading = ledger.reading
    with torch.no_grad(), watching(reading.hook_points) as seen:
        reading.forward(ledger.batch)
    first = {name: x.detach() for name, x in seen.items()}
    for target, into in zip(targets, found, strict=True):
        ledger.read(target, first, into)
    if ledger.options.tokens:
        words = embedded["x"].detach()
        module = reading.model.get_input_embeddings()
        centre = module(torch.arange(module.num_embeddings, device=reading.device)).detach().mean(0)
        for gradient, into in zip(ledger.along_path(module, words, centre, targets), found, strict=True):
            if gradient is not None:
                ledger.add_tokens(gradient, words - centre, into)
    for hook_point in reading.hook_points:
        later = [t if hook_point in reading.earlier(t.hook_point) else None for t in targets]
        x, start = first[hook_point.name], reading.dictionaries[hook_point.name].mean / hook_point.factor
        with skipping(reading.skippable.get(hook_point.name, ())):
            mean = ledger.along_path(hook_point.module, x, start, later)
        for gradient, into in zip(mean, found, strict=True):
            if gradient is not None:
                ledger.add(hook_point, gradient, x, into.hook_points[hook_point.name], centred=True)


class _Ledger:
    """Accumulates the contributions of one batch."""

    def __init__(self, reading: Reading, batch: Batch, options: Options) -> None:
        self.reading, self.batch, self.options = reading, batch, options
        self.device, width = reading.device, batch.ids.shape[1]
        members = [reading.passages[i] for i in batch.members]
        self.flat = torch.cat([row * width + p.tokens for row, p in enumerate(members)]).to(self.device)
        self.fold = torch.tensor([p.fold for p in members]).repeat_interleave(width).to(self.device)
        rows = torch.cat([p.rows for p in members]).to(reading.code.indptr.device)
        self.code = take_rows(reading.code, rows)
        at = torch.arange(self.code.n, device=self.device).repeat_interleave(self.code.indptr.diff())
        self.token_of_entry = self.flat[at]
        self.uncoded = batch.mask.flatten().bool().to(self.device)
        self.uncoded[self.flat] = False

    def read(self, target: Target, seen: dict[str, Tensor], into: Attribution) -> Tensor | None:
        """Sum of the target's pre-activations, with gradient; None if the batch has none of its tokens."""
        read = self._pre_activations(target, seen)
        if read is None:
            return None
        a, at = read
        into.value.index_add_(0, self.fold[at].cpu(), a.detach().double().cpu())
        into.count.index_add_(0, self.fold[at].cpu(), torch.ones(len(at), dtype=torch.float64))
        return a.sum()

    def _pre_activations(self, target: Target, seen: dict[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        width = self.batch.ids.shape[1]
        at = torch.cat([row * width + target.tokens[i] for row, i in enumerate(self.batch.members)]).to(self.device)
        if not len(at):
            return None
        x = seen[target.hook_point].flatten(0, 1)[at] * self.reading.hook_point(target.hook_point).factor
        return self.reading.dictionaries[target.hook_point].read(x, target.column), at

    def add_tokens(self, gradient: Tensor | None, x: Tensor, into: Attribution) -> None:
        """Add gradient times x [b, t, d] to the tokens."""
        if gradient is None:
            return
        contribution = (gradient * x).sum(-1).flatten().double().cpu()
        ids, fold, real = self.batch.ids.flatten(), self.fold.cpu(), self.batch.mask.flatten().bool()
        tokens, index = ids[real].unique(return_inverse=True)
        sums = torch.zeros(len(tokens), self.options.folds, dtype=torch.float64)
        sums.index_put_((index, fold[real]), contribution[real], accumulate=True)
        for token, row in zip(tokens.tolist(), sums, strict=True):
            into.tokens[token] = into.tokens[token] + row if token in into.tokens else row

    def add(self, hook_point: HookPoint, gradient: Tensor, x: Tensor, into: HookPointSums, *, centred: bool) -> None:
        """Add gradient times activations [b, t, d] (both of the module's output) to features and remainders."""
        dictionary = self.reading.dictionaries[hook_point.name]
        g, x = gradient.flatten(0, 1) / hook_point.factor, x.flatten(0, 1) * hook_point.factor
        offset = dictionary.bias if centred else dictionary.mean + dictionary.bias
        x = x - dictionary.mean if centred else x
        coded, folds = g[self.flat], self.fold[self.flat].cpu()
        error = x[self.flat] - offset - self.code.decode(dictionary.decoder)
        into.error.index_add_(0, folds, (coded * error).sum(1).double().cpu())
        into.bias.index_add_(0, folds, (coded @ offset).double().cpu())
        rest = (g[self.uncoded] * x[self.uncoded]).sum(1).double().cpu()
        into.uncoded.index_add_(0, self.fold[self.uncoded].cpu(), rest)
        for part in torch.arange(len(self.code.values), device=self.device).split(ENTRIES):
            latents, token = self.code.latents[part], self.token_of_entry[part]
            contribution = (g[token] * dictionary.decoder[latents]).sum(1) * self.code.values[part]
            where = (self.fold[token] * self.code.m + latents).cpu()
            into.features.view(-1).index_add_(0, where, contribution.double().cpu())

    def along_path(
        self, module: nn.Module, x: Tensor, start: Tensor, targets: Sequence[Target | None]
    ) -> list[Tensor | None]:
        """Mean gradient of each target's sum with respect to the module's output, from `start` [d] to `x` [b, t, d].

        None for targets that are None or have no tokens in this batch.
        """
        sums: list[Tensor | None] = [None] * len(targets)
        if all(target is None for target in targets):
            return sums
        for step in range(self.options.steps):
            point = (start + (step + 0.5) / self.options.steps * (x - start)).requires_grad_(True)
            with replacing(module, lambda _output, point=point: point), watching(self.reading.hook_points) as seen:
                self.reading.forward(self.batch)
            for number, target in enumerate(targets):
                read = None if target is None else self._pre_activations(target, seen)
                if read is None:
                    continue
                (gradient,) = torch.autograd.grad(read[0].sum(), [point], retain_graph=True, allow_unused=True)
                if gradient is not None:
                    part = gradient / self.options.steps
                    before = sums[number]
                    sums[number] = part if before is None else before + part
        return sums
