"""Attribution: what every feature, token and remainder at an earlier place gives to a target feature.

For a target j read at h_j over positions P, and an earlier place h_i with x = mean + bias + sum_i f_i d_i + error:

    A_ij  = mean over p in P of sum_p' f_i(p') <g_p(p'), d_i>        g_p(p') = d a_j(p) / d x_h_i(p')

The gradient g is the model's own (`gradient`), that of the linearised model (`relp`; then everything at a place adds up
to a_j less what the biases on the way give), or its mean along the straight path from the mean activation at h_i
(`integrated`; Sundararajan et al. 2017; everything adds up to a_j less its value at the mean). One backward pass gives
the sum over all positions of a document, so sums are kept by folds of documents.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.regress import take_rows
from featurewatch.workers.dependencies.linear import linearised
from featurewatch.workers.dependencies.places import (
    Batch,
    Dictionary,
    Passage,
    Place,
    Target,
    batches,
    replacing,
    skipping,
    watching,
)

Method = Literal["relp", "gradient", "integrated"]
METHODS: tuple[Method, ...] = ("gradient", "relp", "integrated")
ENTRIES = 16_384
"""Active entries of the code whose decoder rows are held at once."""


@dataclass
class PlaceSums:
    """What one place gives to a target, summed over positions, by fold: [K, m] and [K], float64."""

    features: Tensor
    bias: Tensor
    """mean (but for `integrated`) and bias of the reconstruction"""
    error: Tensor
    """what the reconstruction lacks, where there is a code"""
    uncoded: Tensor
    """all of the activations at tokens that have no code: first tokens, sinks, places of other tokenizers"""

    @staticmethod
    def zeros(folds: int, m: int) -> "PlaceSums":
        return PlaceSums(*(torch.zeros(size, dtype=torch.float64) for size in ((folds, m), folds, folds, folds)))

    def total(self) -> Tensor:
        """[K] everything at this place."""
        return self.features.sum(1) + self.bias + self.error + self.uncoded


@dataclass
class Attribution:
    """All that goes into one target; sums over its positions, by fold."""

    value: Tensor
    """[K] of the pre-activation"""
    count: Tensor
    """[K] positions"""
    constant: float
    """What the read-out gives at an activation of 0"""
    places: dict[str, PlaceSums] = field(default_factory=dict)
    tokens: dict[int, Tensor] = field(default_factory=dict)
    """token id -> [K]"""


@dataclass(frozen=True)
class Options:
    """How attributions are made."""

    method: Method = "gradient"
    steps: int = 8
    """of the path of `integrated`"""
    batch_tokens: int = 1024
    folds: int = 20
    tokens: bool = True
    """Whether input tokens get their share too: gradients then go down all the way"""


@dataclass
class Reading:
    """A model's body with its places in the order in which they are written, and what is known of them."""

    model: Any
    places: list[Place]
    dictionaries: dict[str, Dictionary]
    code: Code
    """of the family's positions, on the model's device"""
    passages: Sequence[Passage]
    skippable: Mapping[str, Sequence[nn.Module]] = field(default_factory=dict)
    """place -> layers that need not run where the activations of the place are known already"""

    @property
    def device(self) -> torch.device:
        """The model's."""
        return next(iter(self.model.parameters())).device

    def earlier(self, name: str) -> list[Place]:
        """The places that are written before this one."""
        names = [place.name for place in self.places]
        return self.places[: names.index(name)]

    def place(self, name: str) -> Place:
        """The place of this name."""
        return next(place for place in self.places if place.name == name)

    def forward(self, batch: Batch) -> Any:
        """One forward pass; hooks see it. Returns what the body gives."""
        return self.model(
            input_ids=batch.ids.to(self.device), attention_mask=batch.mask.to(self.device), use_cache=False
        )


def attribute(
    reading: Reading, targets: Sequence[Target], options: Options, tick: Callable[[float], None] = lambda share: None
) -> list[Attribution]:
    """Attributions of each target. `tick` is called after each batch with the share that is done, and may raise.

    RunError `method-unsupported` of `linearised`. The model's parameters must not require gradients.
    """
    found = [_empty(reading, target, options.folds) for target in targets]
    wanted = [i for i in range(len(reading.passages)) if any(len(target.tokens[i]) for target in targets)]
    total, done = sum(len(reading.passages[i].ids) for i in wanted), 0
    mode: AbstractContextManager[None] = linearised(reading.model) if options.method == "relp" else nullcontext()
    with mode, _tokens(reading.model) as embedded:
        for batch in batches(reading.passages, wanted, options.batch_tokens):
            ledger = _Ledger(reading, batch, options)
            if options.method == "integrated":
                _integrated(ledger, targets, found, embedded)
            else:
                _plain(ledger, targets, found, embedded)
            done += int(batch.mask.sum())
            tick(done / total)
    return found


def _empty(reading: Reading, target: Target, folds: int) -> Attribution:
    m = reading.code.m
    value, count = torch.zeros(folds, dtype=torch.float64), torch.zeros(folds, dtype=torch.float64)
    constant = reading.dictionaries[target.place].constant(target.column)
    places = {place.name: PlaceSums.zeros(folds, m) for place in reading.earlier(target.place)}
    return Attribution(value, count, constant, places)


@contextmanager
def _tokens(model: Any) -> Iterator[dict[str, Tensor]]:
    """While open, the token embeddings of a forward are a leaf of the graph, to be found in the yielded dictionary."""
    held: dict[str, Tensor] = {}

    def leaf(output: Tensor) -> Tensor:
        held["x"] = output.detach().requires_grad_(True)
        return held["x"]

    with replacing(model.get_input_embeddings(), leaf):
        yield held


def _plain(ledger: "_Ledger", targets: Sequence[Target], found: list[Attribution], embedded: dict[str, Tensor]) -> None:
    """One forward pass and, for each target, one backward pass."""
    reading = ledger.reading
    with watching(reading.places) as seen:
        reading.forward(ledger.batch)
    for target, into in zip(targets, found, strict=True):
        summed = ledger.read(target, seen, into)
        if summed is None:
            continue
        before = reading.earlier(target.place)
        words = [embedded["x"]] if ledger.options.tokens else []
        inputs = [*(seen[place.name] for place in before), *words]
        if not inputs:
            continue
        gradients = torch.autograd.grad(summed, inputs, retain_graph=True, allow_unused=True)
        if words:
            ledger.add_tokens(gradients[-1], words[0].detach(), into)
        for place, gradient in zip(before, gradients[: len(before)], strict=True):
            if gradient is not None:
                ledger.add(place, gradient, seen[place.name].detach(), into.places[place.name], centred=False)


def _integrated(
    ledger: "_Ledger", targets: Sequence[Target], found: list[Attribution], embedded: dict[str, Tensor]
) -> None:
    """For each place `steps` forward passes from points of the path, each with a backward pass for each target."""
    reading = ledger.reading
    with torch.no_grad(), watching(reading.places) as seen:
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
    for place in reading.places:
        later = [t if place in reading.earlier(t.place) else None for t in targets]
        x, start = first[place.name], reading.dictionaries[place.name].mean / place.factor
        with skipping(reading.skippable.get(place.name, ())):
            mean = ledger.along_path(place.module, x, start, later)
        for gradient, into in zip(mean, found, strict=True):
            if gradient is not None:
                ledger.add(place, gradient, x, into.places[place.name], centred=True)


class _Ledger:
    """The bookkeeping of one batch: which tokens have a code, and whose account a gradient goes to."""

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
        """Sum of the target's pre-activations at its tokens, in the graph; None where it has none in this batch."""
        found = self._pre_activations(target, seen)
        if found is None:
            return None
        a, at = found
        into.value.index_add_(0, self.fold[at].cpu(), a.detach().double().cpu())
        into.count.index_add_(0, self.fold[at].cpu(), torch.ones(len(at), dtype=torch.float64))
        return a.sum()

    def _pre_activations(self, target: Target, seen: dict[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        width = self.batch.ids.shape[1]
        at = torch.cat([row * width + target.tokens[i] for row, i in enumerate(self.batch.members)]).to(self.device)
        if not len(at):
            return None
        x = seen[target.place].flatten(0, 1)[at] * self.reading.place(target.place).factor
        return self.reading.dictionaries[target.place].read(x, target.column), at

    def add_tokens(self, gradient: Tensor | None, x: Tensor, into: Attribution) -> None:
        """Book gradient times x [b, t, d] to the tokens."""
        if gradient is None:
            return
        given = (gradient * x).sum(-1).flatten().double().cpu()
        ids, fold, real = self.batch.ids.flatten(), self.fold.cpu(), self.batch.mask.flatten().bool()
        kinds, index = ids[real].unique(return_inverse=True)
        sums = torch.zeros(len(kinds), self.options.folds, dtype=torch.float64)
        sums.index_put_((index, fold[real]), given[real], accumulate=True)
        for kind, row in zip(kinds.tolist(), sums, strict=True):
            into.tokens[kind] = into.tokens[kind] + row if kind in into.tokens else row

    def add(self, place: Place, gradient: Tensor, x: Tensor, into: PlaceSums, *, centred: bool) -> None:
        """Book gradient times activations [b, t, d] (both of the module's output) to features and remainders."""
        known = self.reading.dictionaries[place.name]
        g, x = gradient.flatten(0, 1) / place.factor, x.flatten(0, 1) * place.factor
        offset = known.bias if centred else known.mean + known.bias
        x = x - known.mean if centred else x
        coded, folds = g[self.flat], self.fold[self.flat].cpu()
        error = x[self.flat] - offset - self.code.decode(known.decoder)
        into.error.index_add_(0, folds, (coded * error).sum(1).double().cpu())
        into.bias.index_add_(0, folds, (coded @ offset).double().cpu())
        rest = (g[self.uncoded] * x[self.uncoded]).sum(1).double().cpu()
        into.uncoded.index_add_(0, self.fold[self.uncoded].cpu(), rest)
        for part in torch.arange(len(self.code.values), device=self.device).split(ENTRIES):
            latents, token = self.code.latents[part], self.token_of_entry[part]
            given = (g[token] * known.decoder[latents]).sum(1) * self.code.values[part]
            where = (self.fold[token] * self.code.m + latents).cpu()
            into.features.view(-1).index_add_(0, where, given.double().cpu())

    def along_path(
        self, module: nn.Module, x: Tensor, start: Tensor, targets: Sequence[Target | None]
    ) -> list[Tensor | None]:
        """Mean gradient of each target's sum with respect to the module's output, from `start` [d] to `x` [b, t, d].

        None of targets that are None, or not in this batch.
        """
        sums: list[Tensor | None] = [None] * len(targets)
        if all(target is None for target in targets):
            return sums
        for step in range(self.options.steps):
            point = (start + (step + 0.5) / self.options.steps * (x - start)).requires_grad_(True)
            with replacing(module, lambda _output, point=point: point), watching(self.reading.places) as seen:
                self.reading.forward(self.batch)
            for number, target in enumerate(targets):
                found = None if target is None else self._pre_activations(target, seen)
                if found is None:
                    continue
                (gradient,) = torch.autograd.grad(found[0].sum(), [point], retain_graph=True, allow_unused=True)
                if gradient is not None:
                    part = gradient / self.options.steps
                    before = sums[number]
                    sums[number] = part if before is None else before + part
        return sums
