"""How a crosscoder is fitted, and what it is fitted on."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

Sparsity = Literal["batch_topk", "topk", "l1", "jumprelu"]
DecoderKind = Literal["per_source", "shared"]


@dataclass(frozen=True)
class Layout:
    """The sources that stand beside each other in one vector of width D.

    `models`: the checkpoint that each source belongs to, counted from 0; None: all sources are one checkpoint's.
    """

    widths: tuple[int, ...]
    models: tuple[int, ...] | None = None

    @property
    def width(self) -> int:
        """D"""
        return sum(self.widths)

    @property
    def n_models(self) -> int:
        """Number of checkpoints."""
        return 1 + max(self.models or (0,))

    @cached_property
    def starts(self) -> list[int]:
        """First column of each source."""
        return [sum(self.widths[:s]) for s in range(len(self.widths))]

    @property
    def uniform(self) -> bool:
        """Whether all sources have one width: then the loss weighs every column the same."""
        return len(set(self.widths)) == 1

    def weight(self, device: torch.device | str) -> Tensor:
        """1 / d_s for each column: float32 [D]."""
        return torch.cat([torch.full((d,), 1.0 / d, device=device) for d in self.widths])


@dataclass(frozen=True)
class FitConfig:
    """How to fit. `n_features` latents, on average `k` active at a position."""

    n_features: int
    k: int = 32
    steps: int = 2000
    batch_size: int = 2048
    learning_rate: float = 2e-3
    seed: int = 0

    sparsity: Sparsity = "batch_topk"
    sparsity_weight: float | None = None
    """lambda of `l1` and `jumprelu`. None: adjusted as the fit goes, so that `k` latents are active on average."""
    bandwidth: float = 0.5
    """`jumprelu`: width of the kernel that estimates the threshold's gradient, over the threshold."""
    decoder: DecoderKind = "per_source"
    source_dropout: float = 0.0
    """Chance that the encoder does not see a source at a position (one at least it sees): each source's encoder then
    learns to read the features alone."""
    prefixes: tuple[int, ...] = ()
    """Matryoshka: the first so many latents reconstruct by themselves too; ascending, all latents left out."""
    designated: int = 0
    """The first so many latents are shared by design: each of them is written with one norm in all sources."""
    designated_discount: float = 0.2
    """What a designated latent pays for being active, over what the others pay."""
    dedicated: tuple[int, ...] = ()
    """The last latents belong to one checkpoint each, so many to each; the others' decoders hold zeros there."""

    decoder_norm: float = 0.5
    """Norm of a decoder row at the start. 1 leaves half of the latents dead; 0.5 hardly any."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    decay: float = 0.3
    """Share of the steps at the end over which it falls to 0."""
    aux_weight: float = 1 / 32
    dead_after: int = 200_000
    """A latent that was silent for so many positions, or a quarter of the fit where that is shorter, is dead."""
    resample_every: float = 0.05
    """Share of the steps between two resamplings; 0: never."""
    resample_until: float = 0.9
    """Share of the steps after which none takes place, so that what was started can settle."""
    resample_below: float = 0.03
    """A latent that fires less often than this share of the mean rate k / m starts anew."""
    window: int = 2**21
    """Positions that are shuffled among each other: data that exceeds it is streamed, window after window."""

    def __post_init__(self) -> None:
        if not 0 < self.k <= self.n_features:
            raise ValueError(f"k is {self.k}; it must lie in 1 .. n_features ({self.n_features})")
        if list(self.prefixes) != sorted({p for p in self.prefixes if 0 < p < self.n_features}):
            raise ValueError(f"prefixes {self.prefixes} must ascend within 1 .. {self.n_features - 1}")
        if self.designated + sum(self.dedicated) > self.n_features:
            raise ValueError("more designated and dedicated latents than n_features")
        if self.decoder == "shared" and (self.designated or self.dedicated):
            raise ValueError("a shared decoder writes every latent in all sources: no designated or dedicated ones")
        if not 0 <= self.source_dropout < 1:
            raise ValueError(f"source_dropout is {self.source_dropout}; it must lie in 0 .. 1, 1 left out")

    @property
    def groups(self) -> list[tuple[int, int]]:
        """Latents first .. stop of each Matryoshka level beyond the one before it; a single one without prefixes."""
        bounds = [0, *self.prefixes, self.n_features]
        return list(pairwise(bounds))

    def prices(self, device: torch.device | str) -> Tensor:
        """What each latent pays for being active, 1 for most: float32 [m]."""
        prices = torch.ones(self.n_features, device=device)
        prices[: self.designated] = self.designated_discount
        return prices

    def owned(self, layout: Layout, device: torch.device | str) -> Tensor | None:
        """1 where a latent may write a column, 0 where another checkpoint's sources are: [m, D]. None: it may all."""
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
