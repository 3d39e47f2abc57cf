"""Pre-activations of a batch, computed block by block.

Each block of rows is searched before the next one is computed, so the pre-activations of a large batch are never in
memory as a whole, and a batch is never sorted.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.kernels import entries_over

BLOCK_BYTES = 2**28
"""Size of one block of pre-activations."""
LEAST_BLOCK = 64
"""Minimum rows of a block: a product of fewer rows is inefficient."""


class Entries(NamedTuple):
    """Entries of a batch's pre-activations."""

    places: Tensor
    """int64 [nnz], ascending: row * m + latent"""
    latents: Tensor
    """int32 [nnz]"""
    values: Tensor
    """[nnz]"""


class Scratch:
    """Memory for one block of pre-activations, reused by every step.

    Fresh memory costs more than the product of a few rows, because the system clears it page by page.

    dtype: of the product. bfloat16 pays off on hardware that computes in it.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.pre = self.over = torch.empty(0)
        self.owner: object = None
        """The batch whose pre-activations it holds in full"""

    def fit(self, rows: int, m: int, like: Tensor) -> None:
        """Make room for [rows, m]."""
        if self.pre.shape != (rows, m):
            self.pre = like.new_empty(rows, m, dtype=self.dtype)
            self.over = like.new_empty(rows, m, dtype=torch.bool)


class PreActivations:
    """`x encoder' + bias` of a batch [n, D], computed block by block: [n, m].

    Blocks come without the bias: adding it to the few entries that matter is cheaper than adding it to all.
    """

    def __init__(self, x: Tensor, encoder: Tensor, bias: Tensor, scratch: Scratch) -> None:
        self.x, self.encoder, self.bias, self.scratch = x, encoder, bias, scratch
        self.n, self.m = len(x), len(encoder)
        self.token = object()

    def blocks(self) -> Iterator[Tensor]:
        """`x encoder'` of consecutive rows [c, m]. Read-only, and valid until the next block is requested.

        A batch that fits into one block is computed once, however often it is iterated.
        """
        size = min(self.n, max(LEAST_BLOCK, BLOCK_BYTES // (4 * self.m)))
        ready = self.scratch.owner is self.token and size == self.n
        if not ready:
            self.scratch.owner = None
            self.scratch.fit(size, self.m, self.x)
            x, transposed = self.x.to(self.scratch.dtype), self.encoder.to(self.scratch.dtype).T
        for start in range(0, self.n, size):
            out = self.scratch.pre[: min(size, self.n - start)]
            if not ready:
                torch.mm(x[start : start + size], transposed, out=out)
            yield out
        self.scratch.owner = self.token

    def head(self, rows: int) -> Tensor:
        """Pre-activations of the first rows: [rows, m]."""
        return torch.addmm(self.bias, self.x[:rows], self.encoder.T)

    def search(self, floor: Tensor) -> Entries:
        """Entries over `floor` [m], which must be at least 0."""
        places, values, rows, floor = [], [], 0, floor - self.bias
        for product in self.blocks():
            over = entries_over(product, floor, self.scratch.over[: len(product)])
            values.append(product.flatten().index_select(0, over))
            places.append(over + rows * self.m if rows else over)
            rows += len(product)
        all_places = torch.cat(places)
        latents = (all_places % self.m).int()
        return Entries(all_places, latents, torch.cat(values).float().add_(self.bias.index_select(0, latents)))

    def code(self, places: Tensor, latents: Tensor, values: Tensor) -> Code:
        """Entries (ascending flat places, and their latents) as a code with int32 indices."""
        bounds = torch.arange(self.n + 1, device=places.device) * self.m
        return Code(torch.searchsorted(places, bounds, out_int32=True), latents, values, self.m)
