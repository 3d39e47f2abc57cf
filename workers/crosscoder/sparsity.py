"""Sparsity functions: which latents are active, and what keeps them few. One class each, all listed in `SPARSITIES`.

    batch_topk  the n k largest f_i ||d_i|| / sqrt(price_i) of the whole batch (Bussmann et al. 2024)
    topk        the k largest of each position (Gao et al. 2024)
    l1          every positive one; a penalty on f_i sum_s ||d_i^s|| keeps them few (Lindsey et al. 2024)
    jumprelu    those where f_i ||d_i|| exceeds the latent's own, learned threshold (Rajamanoharan et al. 2024)

Selecting the largest scores amounts to a penalty on the number of active latents, where an active latent saves the
square of its score. A latent with a different price therefore competes by the square root of that price, which is also
where the thresholds of `jumprelu` settle. Norms in scores and thresholds are held fixed, as in every BatchTopK.

To add a sparsity: subclass `Sparsity`, list it here, and add its name to the API's options
(`service/families/schemas.py`).
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.kernels import ByLatent, active_entries, kth_largest, kth_largest_of_rows
from featurewatch.workers.crosscoder.parallel import Parallel
from featurewatch.workers.crosscoder.preactivations import PreActivations

if TYPE_CHECKING:
    from featurewatch.workers.crosscoder.fit import FitState
    from featurewatch.workers.crosscoder.model import Crosscoder


class Selection(NamedTuple):
    """The active latents of a batch."""

    code: Code
    """Active entries. `jumprelu` also lists the entries near their threshold, with value 0."""
    pre: Tensor
    """[nnz] pre-activations of the entries"""
    cut: float
    """The smallest selected score: the next step's search starts there"""


class Gradients(NamedTuple):
    """What the loss has accumulated so far for the entries of a batch. A penalty adds its share in place."""

    code: Code
    pre: Tensor
    """[nnz] pre-activations"""
    by_latent: ByLatent
    slope: Tensor
    """[nnz] gradient of the activations"""
    decoder: Tensor
    """[m, D] gradient of the decoder"""


class Sparsity:
    """Base class. The defaults describe a sparsity with neither a penalty nor a threshold."""

    learns_threshold = False
    """Whether `Crosscoder.threshold` is a parameter"""

    def initial_threshold(self, m: int, device: torch.device | str) -> Tensor:
        """`Crosscoder.threshold` before the first step: a scalar, or [m] with one value per latent."""
        return torch.zeros((), device=device)

    def start(self, model: "Crosscoder", pre: PreActivations, n: int, parallel: Parallel) -> float:
        """Prepare the model for its first batch; returns the initial lambda. n: positions over all ranks."""
        return 0.0

    def select(self, model: "Crosscoder", pre: PreActivations, cut: float, n: int, parallel: Parallel) -> Selection:
        """The active latents of a training batch. cut: the last step's. n: positions over all ranks."""
        raise NotImplementedError

    def encode(self, model: "Crosscoder", pre: PreActivations) -> Code:
        """The code at inference, where a position's code depends on nothing but that position."""
        raise NotImplementedError

    def penalty(self, model: "Crosscoder", gradients: Gradients, weight: float) -> tuple[float, Tensor | None]:
        """The penalty's value and the gradient of `threshold`, None unless it is learned.

        Adds the penalty's gradients to `gradients` in place. weight: lambda over the number of positions.
        """
        return 0.0, None

    def firings(self, gradients: Gradients) -> Tensor:
        """Number of positions at which each latent is active: int64 [m]."""
        return gradients.by_latent.counts.long()

    def update(self, state: "FitState", fired: Tensor, n: int, parallel: Parallel) -> None:
        """After each step: adjust the threshold used at inference, or lambda. fired: int64 [m] of this rank."""

    def restart(self, model: "Crosscoder", latents: Tensor, parallel: Parallel) -> None:
        """Reset the thresholds of resampled latents, int64 [r]."""


class BatchTopK(Sparsity):
    """The n k largest scores of a batch. Inference uses the running mean of the batches' thresholds."""

    def select(self, model: "Crosscoder", pre: PreActivations, cut: float, n: int, parallel: Parallel) -> Selection:
        return batch_topk(pre, model.norms() / model.prices.sqrt(), n * model.config.k, cut, parallel)

    def encode(self, model: "Crosscoder", pre: PreActivations) -> Code:
        return pre.code(*pre.search(model.threshold * model.prices.sqrt() / model.norms()))

    def update(self, state: "FitState", fired: Tensor, n: int, parallel: Parallel) -> None:
        decay = min(0.9, 1 - 1 / (state.step + 1))
        state.model.threshold.mul_(decay).add_((1 - decay) * state.cut)


class TopK(Sparsity):
    """The k largest scores of each position."""

    def select(self, model: "Crosscoder", pre: PreActivations, cut: float, n: int, parallel: Parallel) -> Selection:
        return topk(pre, model.norms() / model.prices.sqrt(), model.config.k, parallel)

    def encode(self, model: "Crosscoder", pre: PreActivations) -> Code:
        return self.select(model, pre, 0.0, pre.n, Parallel.one()).code


class Penalised(Sparsity):
    """Base class of sparsities whose penalty lambda follows k, unless `sparsity_weight` fixes it."""

    def start(self, model: "Crosscoder", pre: PreActivations, n: int, parallel: Parallel) -> float:
        """Begin with k active latents instead of half of them: thresholds start where BatchTopK would cut.

        A latent pays for itself if its share of the loss exceeds lambda, so lambda starts at the square of the score.
        """
        norms, config = model.norms(), model.config
        cut = max(batch_topk(pre, norms, n * config.k, 0.0, parallel).cut, 1e-6)
        balanced = self._start_at(model, cut, norms)
        return balanced if config.sparsity_weight is None else config.sparsity_weight

    def _start_at(self, model: "Crosscoder", cut: float, norms: Tensor) -> float:
        """Apply the first cut to the model; returns the lambda that balances it."""
        raise NotImplementedError

    def update(self, state: "FitState", fired: Tensor, n: int, parallel: Parallel) -> None:
        config = state.model.config
        if config.sparsity_weight is None:
            active = float(parallel.sum_over_latents(fired.sum())) / n
            # Twice as many active latents as wanted raise lambda by 1% per step.
            state.penalty *= (max(active, 1e-3) / config.k) ** 0.015


class L1(Penalised):
    """Every positive latent, with the penalty lambda sum_i price_i f_i sum_s ||d_i^s||."""

    def _start_at(self, model: "Crosscoder", cut: float, norms: Tensor) -> float:
        model.encoder_bias.copy_(-cut / norms)
        n_sources = len(model.layout.widths)
        return cut / (model.layout.width / n_sources) / n_sources**0.5

    def select(self, model: "Crosscoder", pre: PreActivations, cut: float, n: int, parallel: Parallel) -> Selection:
        return relu(pre)

    def encode(self, model: "Crosscoder", pre: PreActivations) -> Code:
        return relu(pre).code

    def penalty(self, model: "Crosscoder", gradients: Gradients, weight: float) -> tuple[float, Tensor | None]:
        code, prices, widths = gradients.code, model.prices, model.layout.widths
        rows = model.rows()
        norms = torch.stack([part.norm(dim=1) for part in rows.split(widths, 1)], 1).clamp_min(1e-12)
        cost = prices * norms.sum(1) * weight
        gradients.slope.add_(cost.index_select(0, code.latents))
        active = gradients.by_latent.sum(code.values)
        spread = norms.repeat_interleave(torch.tensor(widths, device=norms.device), 1)
        gradients.decoder.add_(model.collect(rows / spread) * (active * prices * weight).unsqueeze(1))
        return float(active @ cost), None


class JumpReLU(Penalised):
    """Latents over their own threshold, with the penalty lambda sum_i price_i [f_i > 0].

    `threshold` [m] holds the logarithm of what f_i ||d_i|| must exceed. The step function has the gradient of a
    rectangular kernel of width `bandwidth` (Rajamanoharan et al. 2024).
    """

    learns_threshold = True

    def initial_threshold(self, m: int, device: torch.device | str) -> Tensor:
        return torch.zeros(m, device=device)

    def _start_at(self, model: "Crosscoder", cut: float, norms: Tensor) -> float:
        model.threshold.fill_(math.log(cut))
        return 0.5 * cut * cut / (model.layout.width / len(model.layout.widths))

    def select(self, model: "Crosscoder", pre: PreActivations, cut: float, n: int, parallel: Parallel) -> Selection:
        return jumprelu(pre, model.threshold.exp() / model.norms(), model.config.bandwidth)

    def encode(self, model: "Crosscoder", pre: PreActivations) -> Code:
        return pre.code(*pre.search(model.threshold.exp() / model.norms()))

    def penalty(self, model: "Crosscoder", gradients: Gradients, weight: float) -> tuple[float, Tensor | None]:
        code, pre, by_latent, slope, _ = gradients
        latents, prices, bandwidth = code.latents, model.prices, model.config.bandwidth
        norms = model.norms().index_select(0, latents)
        reach = model.threshold.exp().index_select(0, latents)
        edge = ((pre * norms - reach).abs() < 0.5 * bandwidth * reach).float() / bandwidth
        # d f / d log theta = -(theta / bandwidth) K / norm;  d [f > 0] / d log theta = -K / bandwidth
        log_threshold = by_latent.sum(-edge * (slope * reach / norms + weight * prices[latents]))
        slope.mul_(code.values > 0)
        return float(prices[latents[code.values > 0]].sum()) * weight, log_threshold

    def firings(self, gradients: Gradients) -> Tensor:
        return gradients.by_latent.sum((gradients.code.values > 0).long())

    def restart(self, model: "Crosscoder", latents: Tensor, parallel: Parallel) -> None:
        model.threshold[latents] = parallel.over_latents(model.threshold).median()


SPARSITIES: dict[str, Sparsity] = {
    "batch_topk": BatchTopK(),
    "topk": TopK(),
    "l1": L1(),
    "jumprelu": JumpReLU(),
}


def batch_topk(pre: PreActivations, weights: Tensor, count: int, cut: float, parallel: Parallel) -> Selection:
    """The `count` largest positive `pre_i weights_i` over the batches of all ranks. weights: [m].

    The threshold hardly moves between steps, so entries a little below the last one are the only candidates. If these
    are too few, or there is no last threshold, the search goes deeper.
    """
    if cut <= 0.0:
        cut = _estimate_cut(pre, weights, count, parallel)
    for factor in (0.97, 0.8, 0.5, 0.0):
        places, latents, values = pre.search((cut * factor) / weights)
        if int(parallel.total(len(places))) >= count:
            break
    scores = values * weights.index_select(0, latents)
    pool = parallel.gather(scores)
    if len(pool) > count:
        cut = kth_largest(pool, count)
        keep = active_entries(scores >= cut)
        if parallel.alone and len(keep) > count:
            keep = _drop_late_ties(scores, keep, cut, count)
        places, latents, values = (t.index_select(0, keep) for t in (places, latents, values))
    else:
        cut = float(pool.min()) if len(pool) else 0.0
    return Selection(pre.code(places, latents, values), values, cut)


def _estimate_cut(pre: PreActivations, weights: Tensor, count: int, parallel: Parallel) -> float:
    """A threshold estimated from a few rows, for the first step."""
    sample = pre.head(64)
    pool = parallel.gather((sample * weights).flatten())
    share = parallel.total(len(sample)) / parallel.total(pre.n)
    return max(0.0, kth_largest(pool, max(1, min(len(pool), round(count * share)))))


def _drop_late_ties(scores: Tensor, keep: Tensor, threshold: float, count: int) -> Tensor:
    """Resolve ties at the threshold, which repeated text produces, in favour of the earlier positions."""
    tied = (scores[keep] == threshold).nonzero().squeeze(1)[count - len(keep) :]
    early = torch.ones_like(keep, dtype=torch.bool)
    early[tied] = False
    return keep[early]


def topk(pre: PreActivations, weights: Tensor, k: int, parallel: Parallel) -> Selection:
    """The k largest positive `pre_i weights_i` of each position, including all that tie for the last place."""
    places, values, rows = [], [], 0
    for product in pre.blocks():
        scores = torch.add(product, pre.bias).mul_(weights)
        if parallel.latent == 1:
            least = kth_largest_of_rows(scores, min(k, pre.m))
        else:
            best = parallel.over_latents(scores.topk(min(k, pre.m), dim=1).values, dim=1)
            least = best.topk(min(k, best.shape[1]), dim=1).values[:, -1:]
        active = active_entries((scores >= least) & (scores > 0))
        values.append(product.flatten().index_select(0, active))
        places.append(active + rows * pre.m)
        rows += len(product)
    all_places = torch.cat(places)
    latents = (all_places % pre.m).int()
    selected = torch.cat(values).float().add_(pre.bias.index_select(0, latents))
    return Selection(pre.code(all_places, latents, selected), selected, 0.0)


def relu(pre: PreActivations) -> Selection:
    """All positive entries."""
    places, latents, values = pre.search(torch.zeros_like(pre.bias))
    return Selection(pre.code(places, latents, values), values, 0.0)


def jumprelu(pre: PreActivations, floor: Tensor, bandwidth: float) -> Selection:
    """Entries over `floor` [m], the threshold of the pre-activation, and those up to half a kernel below it."""
    places, latents, values = pre.search(floor * (1 - bandwidth / 2))
    return Selection(pre.code(places, latents, values * (values > floor[latents])), values, 0.0)
