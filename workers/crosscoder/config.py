"""Configuration of a fit, and the layout of the activations it reads."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from featurewatch.workers.crosscoder.sparsity import SPARSITIES

DecoderKind = Literal["per_source", "shared"]


@dataclass(frozen=True)
class Layout:
    """The sources concatenated into one vector of width D.

    models: index of the checkpoint that each source belongs to; None if all belong to one checkpoint.
    """

    widths: tuple[int, ...]
    models: tuple[int, ...] | None = None

    @property
    def width(self) -> int:
        """D, the width of all sources together."""
        return sum(self.widths)

    @property
    def n_models(self) -> int:
        return 1 + max(self.models or (0,))

    @cached_property
    def starts(self) -> list[int]:
        """First column of each source, [S]."""
        return [sum(self.widths[:s]) for s in range(len(self.widths))]

    @property
    def uniform(self) -> bool:
        """Whether all sources have the same width, so that the loss weights every column equally."""
        return len(set(self.widths)) == 1

    def weight(self, device: torch.device | str) -> Tensor:
        """1 / d_s for each column: float32 [D]."""
        return torch.cat([torch.full((d,), 1.0 / d, device=device) for d in self.widths])


@dataclass(frozen=True)
class FitConfig:
    """Hyperparameters of a fit with `n_features` latents, of which `k` are active at a position on average."""

    n_features: int
    k: int = 32
    steps: int = 2000
    batch_size: int = 2048
    learning_rate: float = 2e-3
    seed: int = 0

    sparsity: str = "batch_topk"
    """A key of `sparsity.SPARSITIES`"""
    sparsity_weight: float | None = None
    """lambda of `l1` and `jumprelu`. None: adjusted during the fit so that `k` latents are active on average."""
    bandwidth: float = 0.5
    """`jumprelu`: width of the kernel that estimates the threshold's gradient, relative to the threshold."""
    decoder: DecoderKind = "per_source"
    source_dropout: float = 0.0
    """Probability that a source is hidden from the encoder at a position. At least one source stays visible, and each
    source's encoder learns to read the features on its own."""
    prefixes: tuple[int, ...] = ()
    """Matryoshka prefixes: the first p latents also reconstruct on their own. Ascending, without `n_features`."""
    designated: int = 0
    """Number of latents, from the first, that are shared by design: each has the same norm in all sources."""
    designated_discount: float = 0.2
    """Price of a designated latent relative to the others."""
    dedicated: tuple[int, ...] = ()
    """Number of latents, from the last, dedicated to each checkpoint; their decoders are zero in all others."""

    decoder_norm: float = 0.5
    """Initial norm of a decoder row. 1 leaves half of the latents dead, 0.5 hardly any."""
    warmup: float = 0.05
    """Fraction of the steps over which the learning rate rises from 0."""
    decay: float = 0.3
    """Fraction of the steps, at the end, over which it falls to 0."""
    aux_weight: float = 1 / 32
    """Weight of the AuxK loss"""
    dead_after: int = 200_000
    """Positions without a firing after which a latent is dead; a quarter of the fit if that is shorter."""
    resample_every: float = 0.05
    """Fraction of the steps between two resamplings; 0 disables them."""
    resample_until: float = 0.9
    """Fraction of the steps after which resampling stops, so that resampled latents can settle."""
    resample_below: float = 0.03
    """A latent whose firing rate is below this fraction of the mean rate k / m is resampled."""
    window: int = 2**21
    """Positions shuffled as one block. Larger data is streamed, one window after the other."""

    def __post_init__(self) -> None:
        if self.sparsity not in SPARSITIES:
            raise ValueError(f"unknown sparsity {self.sparsity!r}; choose from {', '.join(SPARSITIES)}")
        if not 0 < self.k <= self.n_features:
            raise ValueError(f"k is {self.k}; it must be between 1 and n_features ({self.n_features})")
        if list(self.prefixes) != sorted({p for p in self.prefixes if 0 < p < self.n_features}):
            raise ValueError(f"prefixes {self.prefixes} must be ascending and between 1 and {self.n_features - 1}")
        if self.designated + sum(self.dedicated) > self.n_features:
            raise ValueError("designated and dedicated latents exceed n_features")
        if self.decoder == "shared" and (self.designated or self.dedicated):
            raise ValueError("a shared decoder writes every latent to all sources: no designated or dedicated ones")
        if not 0 <= self.source_dropout < 1:
            raise ValueError(f"source_dropout is {self.source_dropout}; it must be at least 0 and below 1")

    @property
    def groups(self) -> list[tuple[int, int]]:
        """(first, stop) of the latents that each Matryoshka level adds; a single group without prefixes."""
        bounds = [0, *self.prefixes, self.n_features]
        return list(pairwise(bounds))

    def prices(self, device: torch.device | str) -> Tensor:
        """Price of an active latent, 1 for most: float32 [m]."""
        prices = torch.ones(self.n_features, device=device)
        prices[: self.designated] = self.designated_discount
        return prices

    def owned(self, layout: Layout, device: torch.device | str) -> Tensor | None:
        """1 where a latent may write a column, 0 in other checkpoints' columns: [m, D]. None if there is no limit."""
        if not any(self.dedicated):
            return None
        if len(self.dedicated) != layout.n_models:
            raise ValueError(f"dedicated latents for {len(self.dedicated)} checkpoints; there are {layout.n_models}")
        mask = torch.ones(self.n_features, layout.width, device=device)
        first = self.n_features - sum(self.dedicated)
        for model, count in enumerate(self.dedicated):
            for source, owner in enumerate(layout.models or ()):
                if owner != model:
                    columns = slice(layout.starts[source], layout.starts[source] + layout.widths[source])
                    mask[first : first + count, columns] = 0.0
            first += count
        return mask
