"""Which latents are active: the sparsity functions, each as a selection from a batch's pre-activations.

The encoder's product is made in blocks of rows, and each block is looked through before the next is made, so that the
pre-activations of a large batch never are in memory as a whole. A batch is never sorted.

    batch_topk  the n k largest f_i ||d_i|| / sqrt(price_i) of the whole batch (Bussmann et al. 2024)
    topk        the k largest of each position (Gao et al. 2024)
    l1          all that are positive (Lindsey et al. 2024); a penalty makes them few
    jumprelu    those where f_i ||d_i|| is over the latent's own threshold (Rajamanoharan et al. 2024)

A selection is a penalty on the number of active latents, and what one saves is the square of its score: so a latent of
another price competes by the price's root, as the thresholds of `jumprelu` would come out.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.kernels import active_entries, entries_over, kth_largest, kth_largest_of_rows
from featurewatch.workers.crosscoder.parallel import Parallel

BLOCK_BYTES = 2**28
"""Pre-activations of one block."""
LEAST_BLOCK = 64
"""Rows of a block at least: a product of fewer is not efficient."""


class Found(NamedTuple):
    """Entries of a batch's pre-activations."""

    places: Tensor
    """int64 [nnz], ascending: row * m + latent"""
    latents: Tensor
    """int32 [nnz]"""
    values: Tensor
    """[nnz]"""


class Scratch:
    """Memory for a block's pre-activations that is used again in every step: fresh memory costs more than the product
    of a few rows, as the system clears it page by page.

    dtype: in which the product is made and kept. bfloat16 pays where the hardware computes in it.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.pre = self.over = torch.empty(0)
        self.holds: object = None
        """Whose pre-activations are in it, all of them"""

    def fit(self, rows: int, m: int, like: Tensor) -> None:
        """Make room for [rows, m]."""
        if self.pre.shape != (rows, m):
            self.pre = like.new_empty(rows, m, dtype=self.dtype)
            self.over = like.new_empty(rows, m, dtype=torch.bool)


class PreActivations:
    """`x encoder' + bias` of a batch [n, D], made block by block: [n, m].

    Blocks come without the bias: to add it to the few entries that are looked at is cheaper than to all.
    """

    def __init__(self, x: Tensor, encoder: Tensor, bias: Tensor, scratch: Scratch) -> None:
        self.x, self.encoder, self.bias, self.scratch = x, encoder, bias, scratch
        self.n, self.m = len(x), len(encoder)
        self.token = object()

    def blocks(self) -> Iterator[Tensor]:
        """`x encoder'` of consecutive rows [c, m], to be read only; each is gone when the next is asked for.

        What fits into one block is made once, however often it is asked for.
        """
        size = min(self.n, max(LEAST_BLOCK, BLOCK_BYTES // (4 * self.m)))
        made = self.scratch.holds is self.token and size == self.n
        if not made:
            self.scratch.holds = None
            self.scratch.fit(size, self.m, self.x)
            x, transposed = self.x.to(self.scratch.dtype), self.encoder.to(self.scratch.dtype).T
        for start in range(0, self.n, size):
            out = self.scratch.pre[: min(size, self.n - start)]
            if not made:
                torch.mm(x[start : start + size], transposed, out=out)
            yield out
        self.scratch.holds = self.token

    def head(self, rows: int) -> Tensor:
        """Of the first rows alone: [rows, m]."""
        return torch.addmm(self.bias, self.x[:rows], self.encoder.T)

    def search(self, floor: Tensor) -> Found:
        """Entries over `floor` [m] (at least 0)."""
        places, values, rows, floor = [], [], 0, floor - self.bias
        for product in self.blocks():
            found = entries_over(product, floor, self.scratch.over[: len(product)])
            values.append(product.flatten().index_select(0, found))
            places.append(found + rows * self.m if rows else found)
            rows += len(product)
        every = torch.cat(places)
        latents = (every % self.m).int()
        return Found(every, latents, torch.cat(values).float().add_(self.bias.index_select(0, latents)))

    def code(self, places: Tensor, latents: Tensor, values: Tensor) -> Code:
        """Entries (flat places, ascending, and their latents) as a code with int32 indices."""
        bounds = torch.arange(self.n + 1, device=places.device) * self.m
        return Code(torch.searchsorted(places, bounds, out_int32=True), latents, values, self.m)


class Chosen(NamedTuple):
    """What a selection found."""

    code: Code
    """Active entries; of `jumprelu` those near their threshold as well, with the value 0."""
    pre: Tensor
    """[nnz] pre-activations of the entries"""
    cut: float
    """The smallest score that was selected: where the next search starts"""


def batch_topk(pre: PreActivations, weights: Tensor, count: int, cut: float, parallel: Parallel) -> Chosen:
    """The `count` largest positive `pre_i weights_i` over the batches of all ranks.

    The last step's threshold is nearly this one's, so entries a little below it are the only candidates. Where they
    are too few, or nothing is known yet, the search goes deeper.
    """
    if cut <= 0.0:
        cut = _guess(pre, weights, count, parallel)
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
            keep = _without_late_ties(scores, keep, cut, count)
        places, latents, values = (t.index_select(0, keep) for t in (places, latents, values))
    else:
        cut = float(pool.min()) if len(pool) else 0.0
    return Chosen(pre.code(places, latents, values), values, cut)


def _guess(pre: PreActivations, weights: Tensor, count: int, parallel: Parallel) -> float:
    """The threshold of a few rows, for the first step."""
    sample = pre.head(64)
    pool = parallel.gather((sample * weights).flatten())
    share = parallel.total(len(sample)) / parallel.total(pre.n)
    return max(0.0, kth_largest(pool, max(1, min(len(pool), round(count * share)))))


def _without_late_ties(scores: Tensor, keep: Tensor, threshold: float, count: int) -> Tensor:
    """Ties at the threshold, as where a corpus repeats itself: the later ones of them go."""
    tied = (scores[keep] == threshold).nonzero().squeeze(1)[count - len(keep) :]
    kept = torch.ones_like(keep, dtype=torch.bool)
    kept[tied] = False
    return keep[kept]


def topk(pre: PreActivations, weights: Tensor, k: int, parallel: Parallel) -> Chosen:
    """The k largest positive `pre_i weights_i` of each position; of several that are equal there, all."""
    places, values, rows = [], [], 0
    for product in pre.blocks():
        scores = torch.add(product, pre.bias).mul_(weights)
        if parallel.latent == 1:
            least = kth_largest_of_rows(scores, min(k, pre.m))
        else:
            every = parallel.over_latents(scores.topk(min(k, pre.m), dim=1).values, dim=1)
            least = every.topk(min(k, every.shape[1]), dim=1).values[:, -1:]
        found = active_entries((scores >= least) & (scores > 0))
        values.append(product.flatten().index_select(0, found))
        places.append(found + rows * pre.m)
        rows += len(product)
    found = torch.cat(places)
    latents = (found % pre.m).int()
    chosen = torch.cat(values).float().add_(pre.bias.index_select(0, latents))
    return Chosen(pre.code(found, latents, chosen), chosen, 0.0)


def relu(pre: PreActivations) -> Chosen:
    """All positive entries."""
    places, latents, values = pre.search(torch.zeros_like(pre.bias))
    return Chosen(pre.code(places, latents, values), values, 0.0)


def jumprelu(pre: PreActivations, floor: Tensor, bandwidth: float) -> Chosen:
    """Entries over `floor` [m] (the threshold in units of the pre-activation), and those within half a kernel below."""
    places, latents, values = pre.search(floor * (1 - bandwidth / 2))
    return Chosen(pre.code(places, latents, values * (values > floor[latents])), values, 0.0)
