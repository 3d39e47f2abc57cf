"""The code: the sparse matrix of latent activations, positions x latents."""

import warnings
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

# Only one sparse product (`sampled_addmm`) is used, so the state of torch's other CSR support does not matter.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


class Code(NamedTuple):
    """A sparse [n, m] matrix in CSR form. Activations are positive. During a fit, indices are int32."""

    indptr: Tensor
    """int64 [n + 1]"""
    latents: Tensor
    """int64 [nnz], ascending within each row"""
    values: Tensor
    """float32 [nnz]"""
    m: int

    @property
    def n(self) -> int:
        """Number of positions."""
        return len(self.indptr) - 1

    def to_scipy(self) -> scipy.sparse.csr_matrix:
        """The code as a scipy matrix, sharing memory on the CPU."""
        parts = (self.values.cpu().numpy(), self.latents.cpu().numpy(), self.indptr.cpu().numpy())
        return scipy.sparse.csr_matrix(parts, shape=(self.n, self.m))

    @staticmethod
    def from_scipy(matrix: scipy.sparse.spmatrix, device: torch.device | str = "cpu") -> "Code":
        """Build a code from a scipy matrix, dropping zeros and sorting columns."""
        csr = scipy.sparse.csr_matrix(matrix, dtype=np.float32)
        csr.eliminate_zeros()
        csr.sort_indices()
        return Code(
            torch.from_numpy(csr.indptr.astype(np.int64)).to(device),
            torch.from_numpy(csr.indices.astype(np.int64)).to(device),
            torch.from_numpy(csr.data).to(device),
            csr.shape[1],
        )

    def rows(self, start: int, stop: int) -> "Code":
        """Rows start to stop as a separate code."""
        a, b = int(self.indptr[start]), int(self.indptr[stop])
        return Code(self.indptr[start : stop + 1] - a, self.latents[a:b], self.values[a:b], self.m)

    def decode(self, decoder: Tensor) -> Tensor:
        """`F D`: sparse [n, m] times dense [m, D] -> [n, D]. Reads only the rows of active latents."""
        return embedding_bag(
            self.latents,
            decoder,
            self.indptr,
            mode="sum",
            per_sample_weights=self.values.to(decoder.dtype),
            include_last_offset=True,
        )


def concatenate_rows(parts: list[Code]) -> Code:
    """Concatenate codes of consecutive positions."""
    counts = torch.cat([part.indptr.diff() for part in parts])
    indptr = torch.cat([counts.new_zeros(1), counts]).cumsum(0)
    return Code(indptr, torch.cat([p.latents for p in parts]).long(), torch.cat([p.values for p in parts]), parts[0].m)
