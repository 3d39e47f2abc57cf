"""Fitting a crosscoder: steps of Adam on `gradients`, in one process or a grid of processes.

A fit is a function of its data and configuration alone. Every random draw derives from the seed and the step, so a fit
that is interrupted and resumed from its saved state ends with exactly the same bits.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim.adam import adam

from featurewatch.workers.crosscoder.config import FitConfig, Layout
from featurewatch.workers.crosscoder.fit.gradients import gradients, view
from featurewatch.workers.crosscoder.fit.memory import freed_blocks_used_again
from featurewatch.workers.crosscoder.fit.order import Order
from featurewatch.workers.crosscoder.fit.revive import add_auxk, resample
from featurewatch.workers.crosscoder.model import DECODER_BIAS, Crosscoder, initial_crosscoder, tie_designated
from featurewatch.workers.crosscoder.parallel import Parallel
from featurewatch.workers.crosscoder.preactivations import PreActivations, Scratch

Batches = Callable[[Tensor], Tensor]
"""Rows (sorted int64 [b]) -> normalised activations float32 [b, D]; NaN where a source is invalid."""


@dataclass
class FitState:
    """Everything that a fit needs to resume with the same bits."""

    model: Crosscoder
    moments: list[tuple[Tensor, Tensor]]
    """Adam's moments of each parameter, in the order of `Crosscoder.parameters`"""
    silent: Tensor
    """int64 [m]: positions since each latent last fired"""
    fired: Tensor
    """int64 [m]: firings since the last resampling"""
    cut: float = 0.0
    """Selection threshold of the last step; the next search starts there"""
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
    """The initial state: of this rank's latents in a fit over several processes."""
    latents = None if parallel is None else parallel.latents(config.n_features)
    model = initial_crosscoder(config, layout, maps=maps, latents=latents, device=device)
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
    """The initial state of a fit that continues with features of another one.

    rows: [w, D] their decoder rows in all sources. They take the first latents that are neither designated nor
    dedicated, in order; all others start at random. Raises ValueError if there are too few latents.
    """
    state = start(config, layout, maps=maps, device=device)
    model, first, stop = state.model, config.designated, config.designated + len(rows)
    if stop > config.n_features - sum(config.dedicated):
        raise ValueError(f"{len(rows)} features do not fit into {config.n_features} latents")
    model.decoder[first:stop] = model.collect(rows.to(device))
    # Only directions carry over, at the norm that every latent starts with, because Adam's steps have one size for all.
    model.decoder[first:stop] *= (config.decoder_norm / model.norms()[first:stop]).unsqueeze(1)
    model.encoder[first:stop] = model.rows()[first:stop]
    return state


def learning_rate_at(config: FitConfig, step: int) -> float:
    """Linear warm-up, a plateau, and linear decay to zero."""
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
    """Fit a crosscoder on n positions, resuming from `state` if given.

    compute_dtype: of the encoder's product and of the terms of the matrices' gradients, which are most of the work;
    everything else is float32. maps: of a shared decoder. on_step: called after every step, to report progress, to
    save, or to raise. read_ahead: called, for streamed data, with the first positions of the next runs (of
    `order.RUN`).
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
    """One step of the fit, holding everything that is constant across steps. batch: positions over all ranks."""

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
        """Take one step on this rank's normalised activations [b, D]."""
        config, model, parallel = self.config, state.model, self.parallel
        sparsity = model.sparsity
        batch = view(model, x, self.draw(state.step))
        pre = PreActivations(batch.inputs, model.encoder, model.encoder_bias, self.scratch)
        if state.step == 0:
            state.penalty = sparsity.start(model, pre, self.batch, parallel)
        selection = sparsity.select(model, pre, state.cut, self.batch, parallel)
        loss, grads, fired, error = gradients(
            model, batch, selection, self.weight, state.penalty, self.batch, parallel, self.scratch.dtype
        )
        parallel.sum_over_data(fired)
        state.silent += self.batch
        state.silent[fired > 0] = 0
        state.fired += fired
        dead = (state.silent >= self.dead_after).nonzero().squeeze(1)
        if config.aux_weight and parallel.over_latents(state.silent).max() >= self.dead_after:
            add_auxk(model, batch, error, dead, grads, self.weight, parallel)
        parallel.sum_over_data(*grads)
        if self.owned is not None:
            grads[2] *= self.owned
        self._adam(state, grads)
        tie_designated(model)
        state.cut = selection.cut
        sparsity.update(state, fired, self.batch, parallel)
        if self.resample_steps and (state.step + 1) % self.resample_steps == 0:
            self._resample(state, error)
        state.losses.append(parallel.total(loss) / parallel.latent)
        state.step += 1

    def draw(self, step: int) -> Tensor | None:
        """Uniform draws [b, S] of this rank that decide which sources are hidden; None without source dropout."""
        if not self.config.source_dropout:
            return None
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        return self.parallel.rows(torch.rand(self.batch, len(self.layout.widths), generator=generator))

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
        for first, second in (pair for place, pair in enumerate(state.moments) if place != DECODER_BIAS):
            first[weak] = 0.0
            second[weak] = 0.0
        state.model.sparsity.restart(state.model, weak, self.parallel)

    def _adam(self, state: FitState, gradients: list[Tensor]) -> None:
        """One step of fused Adam (0.9, 0.999): a single pass over each matrix."""
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
