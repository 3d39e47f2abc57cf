"""Kernels over the active entries of a code: their selection and sparse products.

With k of m latents active at a position, a dense product does m / k times the work. These functions touch only active
entries. On the CPU they use `embedding_bag` (vectorised, parallel, no intermediate [nnz, D]), `sampled_addmm` and
scipy's counting sort; on CUDA the same calls and a stable sort.
"""

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from featurewatch.workers.crosscoder.code import Code

FEW_THREADS = 4
"""Up to this many threads, single-threaded numpy beats torch at searching (twice as fast at two threads) and at
partitioning (five times)."""


def active_entries(mask: Tensor) -> Tensor:
    """Flat indices of the True entries of a bool matrix, ascending: int64 [nnz]."""
    if mask.is_cuda or torch.get_num_threads() > FEW_THREADS:
        return mask.flatten().nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def entries_over(values: Tensor, floor: Tensor, mask: Tensor) -> Tensor:
    """Flat indices of the entries of `values` over `floor`, ascending: int64 [nnz].

    values: [n, m] float32 or bfloat16. floor: float32 [m]. mask: bool [n, m] scratch space, overwritten.
    """
    if values.is_cuda or torch.get_num_threads() > FEW_THREADS:
        return active_entries(torch.gt(values, floor, out=mask))
    over = mask.numpy()
    if values.dtype == torch.bfloat16:
        # Non-negative floats sort like their bits, and negative ones sort below them; the upper half of a floor is the
        # largest bfloat16 up to it. So comparing half the bytes is enough, in a quarter of the time.
        bits = floor.numpy().view(np.int32) >> 16
        np.greater(values.view(torch.int16).numpy(), bits.astype(np.int16), out=over)
        below = np.flatnonzero(bits < 0)
        over[:, below] = values[:, below].float().numpy() > floor[below].numpy()
    else:
        np.greater(values.numpy(), floor.numpy(), out=over)
    return active_entries(mask)


def kth_largest(values: Tensor, k: int) -> float:
    """The k-th largest of values [n], 1 <= k <= n."""
    if values.is_cuda:
        return float(values.kthvalue(len(values) - k + 1).values)
    return float(np.partition(values.numpy(), len(values) - k)[len(values) - k])


def kth_largest_of_rows(values: Tensor, k: int) -> Tensor:
    """The k-th largest of each row of values [n, m], 1 <= k <= m: [n, 1]."""
    if values.is_cuda or torch.get_num_threads() > FEW_THREADS:
        return values.topk(k, dim=1).values[:, -1:]
    place = values.shape[1] - k
    return torch.from_numpy(np.partition(values.numpy(), place, axis=1)[:, place : place + 1])


def row_dots(left: Tensor, right: Tensor, code: Code) -> Tensor:
    """`left[p] . right[i]` for every active (p, i): [nnz]. One pass over the active rows of `right`."""
    pattern = torch.sparse_csr_tensor(
        code.indptr, code.latents, torch.zeros_like(code.values), (code.n, code.m), check_invariants=False
    )
    return torch.sparse.sampled_addmm(pattern, left, right.T).values()


class ByLatent:
    """The entries of a code grouped by latent, for sums over each latent's positions."""

    def __init__(self, code: Code) -> None:
        self.m = code.m
        self.latents = code.latents
        if code.latents.is_cuda:
            rows = torch.arange(code.n, device=code.latents.device).repeat_interleave(code.indptr.diff())
            self.order = code.latents.argsort(stable=True)
            self.rows = rows[self.order]
            self.offsets = torch.zeros(code.m + 1, dtype=torch.int64, device=code.latents.device)
            torch.cumsum(torch.bincount(code.latents, minlength=code.m), 0, out=self.offsets[1:])
            return
        places = np.arange(len(code.latents))
        parts = (places, code.latents.numpy(), code.indptr.numpy())
        columns = scipy.sparse.csr_matrix(parts, shape=(code.n, code.m)).tocsc()  # a counting sort
        self.order, self.rows, self.offsets = (
            torch.from_numpy(a) for a in (columns.data, columns.indices, columns.indptr)
        )

    @property
    def counts(self) -> Tensor:
        """Number of entries of each latent: [m]."""
        return self.offsets.diff()

    def sum_rows(self, x: Tensor, weights: Tensor, rows: Tensor | None = None) -> Tensor:
        """sum_p weights_pi x[p] for every latent i: [m, D]. weights: [nnz], in the code's order.

        x in bfloat16 halves the memory traffic: products are rounded to it, and sums only at the end. rows: rows of x
        to use in place of the code's, in this object's order.
        """
        return embedding_bag(
            self.rows if rows is None else rows,
            x,
            self.offsets,
            mode="sum",
            per_sample_weights=weights.index_select(0, self.order).to(x.dtype),
            include_last_offset=True,
        ).to(weights.dtype)

    def sum(self, weights: Tensor) -> Tensor:
        """sum_p weights_pi for every latent i: [m]."""
        return torch.zeros(self.m, dtype=weights.dtype, device=weights.device).index_add_(0, self.latents, weights)
