"""Fitting a crosscoder by BatchTopK with hand-written sparse gradients.

Only the encoder's forward product is dense. With k of m latents active, decoding, the gradient of the code and the
gradients of both matrices touch active latents only: each is an `embedding_bag` over the active entries, by rows for
decoding and by latents for the weights.

    loss = mean over positions of sum_s v_s ||x~_s - xhat_s||^2 / d_s + aux

`aux` is AuxK (Gao et al. 2024): dead latents reconstruct what the living ones leave. A few times in the first part of
a fit, latents that hardly fire start anew from positions that are reconstructed badly (resampling, Bricken et al.
2023): rare features are found so that a random start never finds in a short fit.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from workers.crosscoder.code import Code
from workers.crosscoder.model import Crosscoder, initial_crosscoder

Batches = Callable[[Tensor], Tensor]
"""Rows (sorted int64 [b]) -> normalised activations float32 [b, D]. NaN columns: the source is not valid there."""


@dataclass(frozen=True)
class FitConfig:
    """How to fit. `n_features` latents, on average `k` active at a position."""

    n_features: int
    k: int = 32
    steps: int = 2000
    batch_size: int = 2048
    learning_rate: float = 2e-3
    seed: int = 0
    decoder_norm: float = 0.5
    """Norm of a decoder row at the start. 1 leaves half of the latents dead; 0.5 hardly any."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    decay: float = 0.3
    """Share of the steps at the end over which it falls to 0."""
    aux_weight: float = 1 / 32
    dead_after: int = 200_000
    """A latent that was silent for so many positions, or a quarter of the fit where that is shorter, is dead."""
    resample_every: float = 0.1
    """Share of the steps between two resamplings; 0: never."""
    resample_until: float = 0.6
    """Share of the steps after which none takes place, so that what was started can settle."""
    resample_below: float = 0.03
    """A latent that fires less often than this share of the mean rate k / m starts anew."""


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
    cut: float
    """The last step's selection threshold: where the next search starts."""
    step: int = 0
    losses: list[float] = field(default_factory=list)


def start(config: FitConfig, width: int, device: torch.device | str = "cpu") -> FitState:
    """The state before the first step."""
    generator = torch.Generator(device).manual_seed(config.seed)
    model = initial_crosscoder(config.n_features, width, generator, config.decoder_norm)
    return FitState(
        model=model,
        moments=[(torch.zeros_like(p), torch.zeros_like(p)) for p in model.parameters()],
        silent=torch.zeros(config.n_features, dtype=torch.int64, device=device),
        fired=torch.zeros(config.n_features, dtype=torch.int64, device=device),
        cut=0.0,
    )


def learning_rate_at(config: FitConfig, step: int) -> float:
    """Linear warm-up, a plateau, linear decay to zero."""
    rise = (step + 1) / max(1.0, config.warmup * config.steps)
    fall = (config.steps - step) / max(1.0, config.decay * config.steps)
    return config.learning_rate * min(1.0, rise, fall)


def rows_at(config: FitConfig, step: int, n: int) -> Tensor:
    """Rows of one step, sorted: passes over a shuffled order, as a function of seed and step alone."""
    batch = min(config.batch_size, n)
    per_pass = n // batch
    permutation = _permutation(config.seed * 1_000_003 + step // per_pass, n)
    place = step % per_pass
    return permutation[place * batch : (place + 1) * batch].sort().values


@lru_cache(maxsize=1)
def _permutation(seed: int, n: int) -> Tensor:
    """A pass's order. Kept for the pass: to shuffle a million positions takes as long as some steps."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def fit(
    read: Batches,
    n: int,
    widths: list[int],
    config: FitConfig,
    *,
    state: FitState | None = None,
    on_step: Callable[[FitState], None] = lambda state: None,
    device: torch.device | str = "cpu",
) -> FitState:
    """Fit a crosscoder on n positions of sources of the given widths; goes on from `state` where one is given.

    `on_step` is called after every step: for progress, saving, and for raising to stop.
    """
    state = state or start(config, sum(widths), device)
    weight = torch.cat([torch.full((d,), 1.0 / d, device=device) for d in widths])
    step = _Step(config, widths, weight, n)
    while state.step < config.steps:
        x = read(rows_at(config, state.step, n)).to(device)
        state.losses.append(step(state, x))
        state.step += 1
        on_step(state)
    return state


def select(pre: Tensor, norms: Tensor, count: int, cut: float) -> tuple[Tensor, Tensor, Tensor, float]:
    """The `count` largest positive `pre_i * norm_i` of a batch, without sorting the batch.

    The last step's threshold is nearly this one's, so entries a little below it are the only candidates; where they
    are too few (the first step, a jump) all positive entries are. Returns rows, latents, values (by rows, then
    latents) and the threshold.
    """
    for factor in (0.9, 0.0):
        floor = (cut * factor) / norms
        rows, latents = (pre > floor).nonzero(as_tuple=True)
        if len(rows) >= count or cut == 0.0:
            break
    values = pre[rows, latents]
    scores = values * norms[latents]
    if len(scores) > count:
        threshold = scores.kthvalue(len(scores) - count + 1).values
        keep = (scores >= threshold).nonzero().squeeze(1)
        if len(keep) > count:  # ties, as where the corpus repeats itself: the later ones of them go
            tied = (scores[keep] == threshold).nonzero().squeeze(1)[count - len(keep) :]
            kept = torch.ones_like(keep, dtype=torch.bool)
            kept[tied] = False
            keep = keep[kept]
        return rows[keep], latents[keep], values[keep], float(threshold)
    return rows, latents, values, float(scores.min()) if len(scores) else 0.0


class _Step:
    """One step of the fit, with what stays the same over steps."""

    def __init__(self, config: FitConfig, widths: list[int], weight: Tensor, n: int) -> None:
        self.config, self.widths, self.weight = config, widths, weight
        self.k = min(config.k, config.n_features)
        positions = config.steps * min(config.batch_size, n)
        self.dead_after = min(config.dead_after, positions // 4)
        self.resample_steps = round(config.steps * config.resample_every)

    def __call__(self, state: FitState, x: Tensor) -> float:
        model, b = state.model, len(x)
        x, valid, gain = self._mask(x)
        norms = model.decoder.norm(dim=1).clamp_min(1e-12)
        pre = torch.addmm(model.encoder_bias, x * gain if gain is not None else x, model.encoder.T)
        rows, latents, values, cut = select(pre, norms, b * self.k, state.cut)
        indptr = torch.zeros(b + 1, dtype=torch.int64, device=x.device)
        torch.cumsum(torch.bincount(rows, minlength=b), 0, out=indptr[1:])
        code = Code(indptr, latents, values, model.m)

        error = code.decode(model.decoder).add_(model.decoder_bias).sub_(x)  # [b, D]
        if valid is not None:
            error *= valid
        weighted = error * self.weight
        loss = float((error * weighted).sum()) / b
        upstream = weighted.mul_(2 / b)  # gradient of the loss in xhat

        by_latent = _ByLatent(latents, model.m)
        slope = _row_dots(upstream, model.decoder, code)
        inputs = x * gain if gain is not None else x
        gradients = [
            by_latent.sum_rows(inputs, rows, slope),
            by_latent.sum(slope),
            by_latent.sum_rows(upstream, rows, values),
            upstream.sum(0),
        ]
        state.silent += b
        state.silent[latents] = 0
        state.fired += torch.bincount(latents, minlength=model.m)
        dead = (state.silent >= self.dead_after).nonzero().squeeze(1)
        if len(dead):
            self._revive(model, pre, error, valid, inputs, dead, gradients)
        self._adam(state, gradients)
        self._threshold(state, cut)
        if self.resample_steps and (state.step + 1) % self.resample_steps == 0:
            self._resample(state, error, b)
        return loss

    def _mask(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Zeros for sources that are not valid at a position, their mask, and S / S_valid."""
        invalid = x.isnan()
        if not bool(invalid.any()):
            return x, None, None
        valid = (~invalid).to(x.dtype)
        first = torch.tensor([0, *self.widths[:-1]], device=x.device).cumsum(0)
        share = valid[:, first].mean(1, keepdim=True)
        return x.masked_fill(invalid, 0.0), valid, 1.0 / share.clamp_min(1e-6)

    def _revive(
        self,
        model: Crosscoder,
        pre: Tensor,
        error: Tensor,
        valid: Tensor | None,
        x: Tensor,
        dead: Tensor,
        gradients: list[Tensor],
    ) -> None:
        """AuxK: adds the gradient of aux_weight * mean sum_s v_s ||xhat_s + dead_s - x~_s||^2 / d_s, xhat held fixed.

        The dead code is the most active k dead latents of each position. The first rows of a batch, which are a
        random sample, are an unbiased estimate of its mean and keep the cost small.
        """
        sample = slice(0, min(256, len(x)))
        k = min(len(dead), max(1, model.decoder.shape[1] // 2), 256)
        top = pre[sample][:, dead].relu().topk(k, dim=1)
        b = top.values.shape[0]
        rows = torch.arange(b, device=x.device).repeat_interleave(k)
        latents, values = dead[top.indices.flatten()], top.values.flatten()
        indptr = torch.arange(0, b * k + 1, k, device=x.device)
        code = Code(indptr, latents, values, model.m)
        left = code.decode(model.decoder) + error[sample]
        if valid is not None:
            left *= valid[sample]
        upstream = left * self.weight * (self.config.aux_weight * 2 / b)
        slope = _row_dots(upstream, model.decoder, code) * (values > 0)
        by_latent = _ByLatent(latents, model.m)
        gradients[0] += by_latent.sum_rows(x[sample], rows, slope)
        gradients[1] += by_latent.sum(slope)
        gradients[2] += by_latent.sum_rows(upstream, rows, values)

    def _resample(self, state: FitState, error: Tensor, batch: int) -> None:
        """Latents that hardly fire take the direction of a badly reconstructed position, drawn by squared loss."""
        if state.step > self.config.steps * self.config.resample_until:
            return
        rate = state.fired.double() / (self.resample_steps * batch)
        weak = (rate < self.config.resample_below * self.k / state.model.m).nonzero().squeeze(1)[: batch // 2]
        state.fired.zero_()
        chance = (error.square() * self.weight).sum(1).double().square()
        if not len(weak) or int((chance > 0).sum()) < len(weak):
            return
        draw = torch.Generator().manual_seed(self.config.seed * 1_000_003 + state.step)
        rows = torch.multinomial(chance.cpu(), len(weak), generator=draw).to(error.device)
        model = state.model
        directions = torch.nn.functional.normalize(-error[rows], dim=1)
        model.encoder[weak] = directions * (0.5 * model.encoder.norm(dim=1).median())
        model.decoder[weak] = directions * model.decoder.norm(dim=1).median()
        model.encoder_bias[weak] = 0.0
        state.silent[weak] = 0
        for first, second in state.moments[:3]:
            first[weak] = 0.0
            second[weak] = 0.0

    def _adam(self, state: FitState, gradients: list[Tensor]) -> None:
        """Adam (0.9, 0.999), fused: one pass over each matrix."""
        parameters = state.model.parameters()
        steps = [torch.tensor(float(state.step), device=p.device) for p in parameters]
        torch._fused_adam_(
            parameters,
            gradients,
            [m[0] for m in state.moments],
            [m[1] for m in state.moments],
            [],
            [s.add_(1.0) for s in steps],
            lr=learning_rate_at(self.config, state.step),
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    def _threshold(self, state: FitState, cut: float) -> None:
        """Running mean of the batches' thresholds: what inference selects by."""
        state.cut = cut
        keep = min(0.99, 1 - 1 / (state.step + 1))
        state.model.threshold.mul_(keep).add_((1 - keep) * cut)


def _row_dots(left: Tensor, right: Tensor, code: Code) -> Tensor:
    """`left[p] . right[i]` for every active (p, i): [nnz]. One pass over the active rows of `right`."""
    pattern = torch.sparse_csr_tensor(
        code.indptr, code.latents, torch.zeros_like(code.values), (code.n, code.m), check_invariants=False
    )
    return torch.sparse.sampled_addmm(pattern, left, right.T).values()


class _ByLatent:
    """Active entries grouped by latent: sums over the positions of each latent."""

    def __init__(self, latents: Tensor, m: int) -> None:
        self.order = latents.argsort(stable=True)
        self.offsets = torch.zeros(m + 1, dtype=torch.int64, device=latents.device)
        torch.cumsum(torch.bincount(latents, minlength=m), 0, out=self.offsets[1:])
        self.latents, self.m = latents, m

    def sum_rows(self, x: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        """sum_p weights_pi x[p] for every latent i: [m, D]."""
        return embedding_bag(
            rows[self.order],
            x,
            self.offsets,
            mode="sum",
            per_sample_weights=weights[self.order],
            include_last_offset=True,
        )

    def sum(self, weights: Tensor) -> Tensor:
        """sum_p weights_pi for every latent i: [m]."""
        return torch.zeros(self.m, device=weights.device).index_add_(0, self.latents, weights)
