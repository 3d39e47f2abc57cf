"""The crosscoder itself: parameters, encoding, decoding.

    a(p)   = sum_s v_s(p) W_enc^s x~_s(p) * S/S_valid(p) + b_enc
    f(p)   = sparsity(relu(a(p)))
    xhat_s = W_dec^s f + b_dec^s

All sources are concatenated into one vector of width D, so encoding is one product and decoding one lookup, whatever
the widths of the sources (Lindsey et al. 2024; BatchTopK: Bussmann et al. 2024, Minder et al. 2025). A shared decoder
has one row per latent in a single space, W_dec^s = W_dec P_s with P_s orthonormal.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from featurewatch.workers.crosscoder.code import Code, concatenate_rows
from featurewatch.workers.crosscoder.config import FitConfig, Layout
from featurewatch.workers.crosscoder.preactivations import PreActivations, Scratch
from featurewatch.workers.crosscoder.sparsity import SPARSITIES, Sparsity


class Normaliser(NamedTuple):
    """x~ = (x - mean) * sqrt(d) / rms per source, with rms^2 = E||x - mean||^2, so that all sources weigh the same."""

    mean: Tensor
    """float32 [D]"""
    scale: Tensor
    """float32 [D]: sqrt(d_s) / rms_s of each column's source"""

    def __call__(self, x: Tensor) -> Tensor:
        """[n, D] activations of any float type -> [n, D] normalised float32."""
        return (x.float() - self.mean) * self.scale


class Moments:
    """Accumulates the normaliser over streamed activations [n, D].

    Blocks are centred in float32 and combined in float64 (Chan et al. 1983), so neither their order nor a large mean
    matters.
    """

    def __init__(self, widths: list[int], device: torch.device | str = "cpu") -> None:
        self.widths = widths
        self.count = 0
        self.mean = torch.zeros(sum(widths), dtype=torch.float64, device=device)
        self.squares = torch.zeros_like(self.mean)
        """Sums of squared distances from the mean"""

    def add(self, x: Tensor) -> None:
        """Add rows [n, D]."""
        if not len(x):
            return
        x = x.float()
        mean = x.mean(0)
        squares = (x - mean).square_().sum(0).double()
        total, shift = self.count + len(x), mean.double() - self.mean
        self.squares += squares + shift.square() * (self.count * len(x) / total)
        self.mean += shift * (len(x) / total)
        self.count = total

    def normaliser(self) -> Normaliser:
        """The normaliser of all rows so far. A constant source keeps scale 1."""
        variance = self.squares / max(self.count, 1)
        scale = torch.ones_like(self.mean)
        for part, spread, mean in zip(*(t.split(self.widths) for t in (scale, variance, self.mean)), strict=True):
            # The variance of a constant source rounds to about 1e-14 of its square.
            if float(spread.sum()) > 1e-12 * float(mean.square().sum() + spread.sum()):
                part.fill_((len(part) / float(spread.sum())) ** 0.5)
        return Normaliser(self.mean.float(), scale.float())


DECODER_BIAS = 3
"""Index of the decoder's bias in `Crosscoder.parameters`: the only parameter that is not per latent."""


@dataclass
class Crosscoder:
    """Parameters over the concatenated sources. Matrices have one row per latent."""

    config: FitConfig
    layout: Layout
    encoder: Tensor
    """[m, D]"""
    encoder_bias: Tensor
    """[m]"""
    decoder: Tensor
    """[m, D]; a shared decoder is [m, d] with d the width of the widest source"""
    decoder_bias: Tensor
    """[D]"""
    threshold: Tensor
    """A scalar or [m]; its meaning depends on the sparsity. For `batch_topk`, a latent is active where
    f_i ||d_i|| / sqrt(price_i) exceeds it."""
    maps: tuple[Tensor, ...] = ()
    """P_s of a shared decoder, [d, d_s] each"""
    first: int = 0
    """Index of the first latent of this process, in a fit that shards its latents over several"""

    @property
    def m(self) -> int:
        """Number of latents."""
        return len(self.encoder)

    @property
    def sparsity(self) -> Sparsity:
        """The sparsity function that the config names."""
        return SPARSITIES[self.config.sparsity]

    @cached_property
    def prices(self) -> Tensor:
        """Price of each latent when active: [m]."""
        return self.config.prices(self.encoder.device)[self.first : self.first + self.m]

    def parameters(self) -> list[Tensor]:
        """Tensors that are learned by gradient, in a fixed order."""
        learned = [self.encoder, self.encoder_bias, self.decoder, self.decoder_bias]
        return [*learned, self.threshold] if self.sparsity.learns_threshold else learned

    def spread(self, rows: Tensor) -> Tensor:
        """Map rows from the decoder's space to the concatenated source spaces: [n, D]."""
        return torch.cat([rows @ p for p in self.maps], 1) if self.maps else rows

    def collect(self, x: Tensor) -> Tensor:
        """Adjoint of `spread`: map rows [n, D] to the decoder's space."""
        if not self.maps:
            return x
        parts = zip(x.split(self.layout.widths, 1), self.maps, strict=True)
        return torch.stack([part @ p.T for part, p in parts]).sum(0)

    def rows(self) -> Tensor:
        """Decoder rows in all sources: [m, D]."""
        return self.spread(self.decoder)

    def norms(self) -> Tensor:
        """||d_i|| over all sources: [m]."""
        if not self.maps:
            return self.decoder.norm(dim=1).clamp_min(1e-12)
        square = torch.stack([p @ p.T for p in self.maps]).sum(0)
        return ((self.decoder @ square) * self.decoder).sum(1).clamp_min(1e-24).sqrt()

    def norms_by_source(self) -> Tensor:
        """||d_i^s||: [m, S]."""
        return torch.stack([part.norm(dim=1) for part in self.rows().split(self.layout.widths, 1)], 1)

    @torch.no_grad()
    def encode(self, x: Tensor, source: int | None = None, block: int = 4096) -> Code:
        """Code of normalised activations [n, D]. A position's code depends on nothing but that position.

        source: x is [n, d_s] of this source alone, read in place of all sources (trained by `source_dropout`).
        """
        encoder = self.encoder
        if source is not None:
            encoder = encoder.split(self.layout.widths, 1)[source] * len(self.layout.widths)
        scratch = Scratch()
        batches = (PreActivations(rows, encoder, self.encoder_bias, scratch) for rows in x.split(block))
        return concatenate_rows([self.sparsity.encode(self, pre) for pre in batches])

    @torch.no_grad()
    def reconstruct(self, code: Code) -> Tensor:
        """Normalised reconstruction of a code: [n, D]."""
        return self.spread(code.decode(self.decoder)) + self.decoder_bias


def initial_crosscoder(
    config: FitConfig,
    layout: Layout,
    *,
    maps: tuple[Tensor, ...] = (),
    latents: slice | None = None,
    device: torch.device | str = "cpu",
) -> Crosscoder:
    """Random decoder rows of norm `decoder_norm`; the encoder starts as the transposed decoder.

    maps: P_s of a shared decoder (`shared_maps`). latents: the range of this process, None for all. A latent's values
    do not depend on the range.
    """
    if (config.decoder == "shared") != bool(maps):
        raise ValueError("a shared decoder requires maps; a decoder per source takes none")
    generator = torch.Generator(device).manual_seed(config.seed)
    latents = latents or slice(0, config.n_features)
    width = len(maps[0]) if maps else layout.width
    decoder = torch.randn(config.n_features, width, generator=generator, device=device)
    owned = config.owned(layout, device)
    if owned is not None:
        decoder *= owned
    model = Crosscoder(
        config=config,
        layout=layout,
        encoder=decoder,
        encoder_bias=torch.zeros(config.n_features, device=device)[latents],
        decoder=decoder[latents].clone(),
        decoder_bias=torch.zeros(layout.width, device=device),
        threshold=SPARSITIES[config.sparsity].initial_threshold(latents.stop - latents.start, device),
        maps=maps,
        first=latents.start,
    )
    tie_designated(model)
    model.decoder *= (config.decoder_norm / model.norms()).unsqueeze(1)
    model.encoder = model.rows().clone()
    return model


def tie_designated(model: Crosscoder) -> None:
    """Give every designated latent the same norm in all sources, in units of sqrt(d_s)."""
    count = min(model.config.designated - model.first, model.m)
    if count <= 0:
        return
    widths = model.layout.widths
    parts = model.decoder[:count].split(widths, 1)
    norms = torch.stack([part.norm(dim=1) / d**0.5 for part, d in zip(parts, widths, strict=True)], 1)
    target = norms.square().mean(1, keepdim=True).sqrt() / norms.clamp_min(1e-12)
    for source, part in enumerate(parts):
        part.mul_(target[:, source : source + 1])


def shared_maps(cross: list[Tensor], widths: tuple[int, ...], alike: float = 0.8) -> tuple[Tensor, ...]:
    """P_s of a shared decoder in the space of the widest source w: [d_w, d_s] with orthonormal columns.

    cross: X_s' X_w [d_s, d_w] on paired normalised activations, per source. P_s is the orthogonal Procrustes solution
    that brings X_s P_s' closest to X_w. If the widths agree and the identity does nearly as well (`alike` of the
    solution's agreement), the sources share a basis and P_s is the identity: a map fitted to data would only blur it.
    """
    widest = max(range(len(widths)), key=lambda s: widths[s])
    maps = []
    for source, product in enumerate(cross):
        u, singular, v = torch.linalg.svd(product.double(), full_matrices=False)
        same = widths[source] == widths[widest] and float(product.double().trace()) >= alike * float(singular.sum())
        p = torch.eye(widths[widest], dtype=torch.float64, device=product.device) if same else (u @ v).T
        maps.append(p.float().contiguous())
    return tuple(maps)
