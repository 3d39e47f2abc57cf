"""The crosscoder itself: parameters, encoding, decoding.

    a(p)   = sum_s v_s(p) W_enc^s x~_s(p) * S/S_valid(p) + b_enc
    f(p)   = relu(a(p)) where f_i ||d_i|| passes the threshold, else 0
    xhat_s = W_dec^s f + b_dec^s

Sources stand beside each other in one vector of width D, so that all encoders are one product and all decoders one
lookup, whatever the widths of the sources (Lindsey et al. 2024; BatchTopK: Bussmann et al. 2024, Minder et al. 2025).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from workers.crosscoder.code import Code, concatenate_rows


class Normaliser(NamedTuple):
    """x~ = (x - mean) * sqrt(d) / rms for each source, with rms^2 = E||x - mean||^2: every source weighs the same."""

    mean: Tensor
    """float32 [D]"""
    scale: Tensor
    """float32 [D]: sqrt(d_s) / rms_s of the source that each column belongs to"""

    def __call__(self, x: Tensor) -> Tensor:
        """[n, D] activations of any float type -> [n, D] normalised float32."""
        return (x.float() - self.mean) * self.scale


class Moments:
    """Streams activations [n, D] and gives the normaliser. Blocks are centred in float32 and combined in float64 (Chan
    et al. 1983), so that neither order nor a large mean matters."""

    def __init__(self, widths: list[int], device: torch.device | str = "cpu") -> None:
        self.widths = widths
        self.count = 0
        self.mean = torch.zeros(sum(widths), dtype=torch.float64, device=device)
        self.squares = torch.zeros_like(self.mean)
        """sums of squared distances from the mean"""

    def add(self, x: Tensor) -> None:
        """Take in rows [n, D]."""
        if not len(x):
            return
        x = x.float()
        mean = x.mean(0)
        squares = (x - mean).square_().sum(0).double()
        total, off = self.count + len(x), mean.double() - self.mean
        self.squares += squares + off.square() * (self.count * len(x) / total)
        self.mean += off * (len(x) / total)
        self.count = total

    def normaliser(self) -> Normaliser:
        """The normaliser of all rows so far; a source that never varies is left at scale 1."""
        variance = self.squares / max(self.count, 1)
        scale = torch.ones_like(self.mean)
        for part, spread, mean in zip(*(t.split(self.widths) for t in (scale, variance, self.mean)), strict=True):
            # Rounding leaves a variance of about 1e-14 of the square where there is none.
            if float(spread.sum()) > 1e-12 * float(mean.square().sum() + spread.sum()):
                part.fill_((len(part) / float(spread.sum())) ** 0.5)
        return Normaliser(self.mean.float(), scale.float())


@dataclass
class Crosscoder:
    """Parameters over sources that stand beside each other; both matrices have one row per latent."""

    encoder: Tensor
    """[m, D]"""
    encoder_bias: Tensor
    """[m]"""
    decoder: Tensor
    """[m, D]"""
    decoder_bias: Tensor
    """[D]"""
    threshold: Tensor
    """[]: at inference a latent is active where f_i ||d_i|| is over it"""

    @property
    def m(self) -> int:
        """Number of latents."""
        return len(self.encoder)

    def parameters(self) -> list[Tensor]:
        """What is learnt by gradient, in a fixed order."""
        return [self.encoder, self.encoder_bias, self.decoder, self.decoder_bias]

    @torch.no_grad()
    def encode(self, x: Tensor, block: int = 4096) -> Code:
        """Code of normalised activations [n, D], by the threshold: a position's code depends on nothing but itself."""
        norms = self.decoder.norm(dim=1).clamp_min(1e-12)
        floor = self.threshold / norms
        return concatenate_rows([self._encode_block(rows, floor) for rows in x.split(block)])

    def _encode_block(self, x: Tensor, floor: Tensor) -> Code:
        pre = torch.addmm(self.encoder_bias, x, self.encoder.T)
        active = (pre > floor) & (pre > 0)
        rows, latents = active.nonzero(as_tuple=True)
        indptr = torch.zeros(len(x) + 1, dtype=torch.int64, device=x.device)
        torch.cumsum(torch.bincount(rows, minlength=len(x)), 0, out=indptr[1:])
        return Code(indptr, latents, pre[active], self.m)

    @torch.no_grad()
    def reconstruct(self, code: Code) -> Tensor:
        """[n, D] normalised reconstruction of a code."""
        return code.decode(self.decoder) + self.decoder_bias


def initial_crosscoder(m: int, width: int, generator: torch.Generator, decoder_norm: float) -> Crosscoder:
    """Random directions of `decoder_norm` over all sources; the encoder is the decoder transposed."""
    device = generator.device
    decoder = torch.randn(m, width, generator=generator, device=device)
    decoder *= decoder_norm / decoder.norm(dim=1, keepdim=True)
    return Crosscoder(
        encoder=decoder.clone(),
        encoder_bias=torch.zeros(m, device=device),
        decoder=decoder,
        decoder_bias=torch.zeros(width, device=device),
        threshold=torch.zeros((), device=device),
    )
