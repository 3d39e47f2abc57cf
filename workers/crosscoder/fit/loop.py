"""Fitting a crosscoder: steps of Adam on `gradients`, on one process or on a grid of them.

A fit is a function of its data, its configuration and nothing else: every random draw comes from seed and step, so a
fit that is stopped anywhere and goes on from its saved state ends bit by bit the same.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim.adam import adam

from featurewatch.workers.crosscoder.config import FitConfig, Layout
from featurewatch.workers.crosscoder.fit.gradients import choose, gradients, view
from featurewatch.workers.crosscoder.fit.memory import freed_blocks_used_again
from featurewatch.workers.crosscoder.fit.order import Order
from featurewatch.workers.crosscoder.fit.revive import add_auxk, resample
from featurewatch.workers.crosscoder.model import Crosscoder, initial_crosscoder, tie_designated
from featurewatch.workers.crosscoder.parallel import Parallel
from featurewatch.workers.crosscoder.preactivations import PreActivations, Scratch, batch_topk

Batches = Callable[[Tensor], Tensor]
"""Rows (sorted int64 [b]) -> normalised activations float32 [b, D]. NaN columns: the source is not valid there."""


@dataclass
class FitState:
    """All that a fit needs to go on where it stopped, bit by bit the same."""

    model: Crosscoder
    moments: list[tuple[Tensor, Tensor]]
    """Adam's two moments of each parameter, in the order of `Crosscoder.parameters`."""
    silent: Tensor
    """int64 [m]: positions since each latent last fired"""
    fired: Tensor
    """int64 [m]: firings since the last resampling"""
    cut: float = 0.0
    """The last step's selection threshold: where the next search starts."""
    penalty: float = 0.0
    """lambda of the last step"""
    step: int = 0
    losses: list[float] = field(default_factory=list)


def start(
    config: FitConfig,
    layout: Layout,
    *,
    maps: tuple[Tensor, ...] = (),
    parallel: Parallel | None = None,
    device: torch.device | str = "cpu",
) -> FitState:
    """The state before the first step: of a rank's latents in a fit over several processes."""
    latents = None if parallel is None else parallel.latents(config.n_features)
    model = initial_crosscoder(config, layout, maps=maps, latents=latents, device=device)
    if config.sparsity == "jumprelu":
        model.threshold = torch.zeros(model.m, device=device)
    return FitState(
        model=model,
        moments=[(torch.zeros_like(p), torch.zeros_like(p)) for p in model.parameters()],
        silent=torch.zeros(model.m, dtype=torch.int64, device=device),
        fired=torch.zeros(model.m, dtype=torch.int64, device=device),
    )


@torch.no_grad()
def start_from(
    rows: Tensor,
    config: FitConfig,
    layout: Layout,
    *,
    maps: tuple[Tensor, ...] = (),
    device: torch.device | str = "cpu",
) -> FitState:
    """The state before the first step of a fit that goes on with the features of another: rows [w, D] are what these
    write into every source. They take the first latents that are neither designated nor dedicated, in their order; the
    others start anew. ValueError where there are too few latents."""
    state = start(config, layout, maps=maps, device=device)
    model, first, stop = state.model, config.designated, config.designated + len(rows)
    if stop > config.n_features - sum(config.dedicated):
        raise ValueError(f"{len(rows)} features do not fit into {config.n_features} latents")
    model.decoder[first:stop] = model.collect(rows.to(device))
    # Only directions are taken over, at the size that every latent starts with: Adam's steps are of one size for all.
    model.decoder[first:stop] *= (config.decoder_norm / model.norms()[first:stop]).unsqueeze(1)
    model.encoder[first:stop] = model.rows()[first:stop]
    return state


def learning_rate_at(config: FitConfig, step: int) -> float:
    """Linear warm-up, a plateau, linear decay to zero."""
    rise = (step + 1) / max(1.0, config.warmup * config.steps)
    fall = (config.steps - step) / max(1.0, config.decay * config.steps)
    return config.learning_rate * min(1.0, rise, fall)


@torch.no_grad()
def fit(
    read: Batches,
    n: int,
    layout: Layout,
    config: FitConfig,
    *,
    state: FitState | None = None,
    maps: tuple[Tensor, ...] = (),
    on_step: Callable[[FitState], None] = lambda state: None,
    read_ahead: Callable[[Tensor], None] = lambda runs: None,
    parallel: Parallel | None = None,
    compute_dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> FitState:
    """Fit a crosscoder on n positions; goes on from `state` where one is given.

    compute_dtype: of the encoder's product and of what the matrices' gradients are sums of, which is most of the work;
    all else is float32.

    maps: of a shared decoder. on_step is called after every step: for progress, saving, and for raising to stop.
    read_ahead is told, of data that is streamed, the first positions of the runs (of `order.RUN`) that come next.
    """
    parallel = parallel or Parallel()
    state = state or start(config, layout, maps=maps, parallel=parallel, device=device)
    order = Order(n, config.batch_size, config.seed, config.window)
    step = Step(config, layout, order.batch, parallel, device, compute_dtype)
    with freed_blocks_used_again():
        while state.step < config.steps:
            runs = order.next_window(state.step)
            if runs is not None:
                read_ahead(runs)
            step(state, read(parallel.rows(order.rows(state.step))).to(device))
            on_step(state)
    return state


class Step:
    """One step of the fit, with what stays the same over steps. batch: positions of a step over all ranks."""

    def __init__(
        self,
        config: FitConfig,
        layout: Layout,
        batch: int,
        parallel: Parallel,
        device: torch.device | str = "cpu",
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.layout, self.batch, self.parallel = config, layout, batch, parallel
        self.weight, self.scratch = layout.weight(device), Scratch(compute_dtype)
        owned = config.owned(layout, device)
        self.owned = None if owned is None else owned[parallel.latents(config.n_features)]
        self.dead_after = min(config.dead_after, config.steps * batch // 4)
        self.resample_steps = round(config.steps * config.resample_every)

    def __call__(self, state: FitState, x: Tensor) -> None:
        """Take one step on normalised activations [b, D] of this rank."""
        config, model, parallel = self.config, state.model, self.parallel
        batch = view(model, x, self.draw(state.step))
        pre = PreActivations(batch.inputs, model.encoder, model.encoder_bias, self.scratch)
        if state.step == 0 and config.sparsity in ("l1", "jumprelu"):
            self._begin_sparse(state, pre)
        chosen = choose(model, pre, state.cut, self.batch, parallel)
        found = gradients(model, batch, chosen, self.weight, state.penalty, self.batch, parallel, self.scratch.dtype)
        fired = found.fired
        parallel.sum_over_data(fired)
        state.silent += self.batch
        state.silent[fired > 0] = 0
        state.fired += fired
        dead = (state.silent >= self.dead_after).nonzero().squeeze(1)
        if config.aux_weight and parallel.over_latents(state.silent).max() >= self.dead_after:
            add_auxk(model, batch, found.error, dead, found.gradients, self.weight, parallel)
        parallel.sum_over_data(*found.gradients)
        if self.owned is not None:
            found.gradients[2] *= self.owned
        self._adam(state, found.gradients)
        tie_designated(model)
        state.cut = chosen.cut
        self._follow(state, fired)
        if self.resample_steps and (state.step + 1) % self.resample_steps == 0:
            self._resample(state, found.error)
        state.losses.append(parallel.total(found.loss) / parallel.latent)
        state.step += 1

    def draw(self, step: int) -> Tensor | None:
        """What decides which sources are hidden from the encoder: [b, S] of this rank, uniform in 0 .. 1."""
        if not self.config.source_dropout:
            return None
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        return self.parallel.rows(torch.rand(self.batch, len(self.layout.widths), generator=generator))

    def _begin_sparse(self, state: FitState, pre: PreActivations) -> None:
        """`l1` and `jumprelu` start with k active latents, not with half of them: thresholds where a BatchTopK cuts.

        A latent pays for itself where its share of the loss exceeds lambda, so lambda starts at the score's square.
        """
        model, k = state.model, self.config.k
        norms = model.norms()
        every = batch_topk(pre, norms, self.batch * k, 0.0, self.parallel)
        cut = max(every.cut, 1e-6)
        d = self.layout.width / len(self.layout.widths)
        if self.config.sparsity == "jumprelu":
            model.threshold.fill_(math.log(cut))
            begin = 0.5 * cut * cut / d
        else:
            model.encoder_bias.copy_(-cut / norms)
            begin = cut / d / len(self.layout.widths) ** 0.5
        state.penalty = begin if self.config.sparsity_weight is None else self.config.sparsity_weight

    def _follow(self, state: FitState, fired: Tensor) -> None:
        """Inference's threshold (`batch_topk`: the running mean of the batches'), and lambda, which follows k."""
        if self.config.sparsity == "batch_topk":
            keep = min(0.9, 1 - 1 / (state.step + 1))
            state.model.threshold.mul_(keep).add_((1 - keep) * state.cut)
        elif self.config.sparsity in ("l1", "jumprelu") and self.config.sparsity_weight is None:
            active = float(self.parallel.sum_over_latents(fired.sum())) / self.batch
            # A factor of two too many active latents raises lambda by 1% a step.
            state.penalty *= (max(active, 1e-3) / self.config.k) ** 0.015

    def _resample(self, state: FitState, error: Tensor) -> None:
        config = self.config
        if state.step > config.steps * config.resample_until:
            return
        rate = state.fired.double() / (self.resample_steps * self.batch)
        rare = rate < config.resample_below * config.k / config.n_features
        state.fired.zero_()
        seed = config.seed * 1_000_003 + state.step
        weak = resample(state.model, rare, error, self.weight, seed, self.owned, self.parallel)
        state.silent[weak] = 0
        for first, second in (pair for place, pair in enumerate(state.moments) if place != 3):
            first[weak] = 0.0
            second[weak] = 0.0
        if config.sparsity == "jumprelu":
            state.model.threshold[weak] = self.parallel.over_latents(state.model.threshold).median()

    def _adam(self, state: FitState, gradients: list[Tensor]) -> None:
        """Adam (0.9, 0.999), fused: one pass over each matrix."""
        parameters = state.model.parameters()
        adam(
            parameters,
            gradients,
            [first for first, _ in state.moments],
            [second for _, second in state.moments],
            [],
            [torch.tensor(float(state.step), device=p.device) for p in parameters],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=learning_rate_at(self.config, state.step),
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
