"""The crosscoder itself: parameters, encoding, decoding.

    a(p)   = sum_s v_s(p) W_enc^s x~_s(p) * S/S_valid(p) + b_enc
    f(p)   = sparsity(relu(a(p)))
    xhat_s = W_dec^s f + b_dec^s

Sources stand beside each other in one vector of width D, so that all encoders are one product and all decoders one
lookup, whatever the widths of the sources (Lindsey et al. 2024; BatchTopK: Bussmann et al. 2024, Minder et al. 2025).
A shared decoder has one row per latent in one space for all sources, W_dec^s = W_dec P_s with P_s orthonormal.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from featurewatch.workers.crosscoder import preactivations as select
from featurewatch.workers.crosscoder.code import Code, concatenate_rows
from featurewatch.workers.crosscoder.config import FitConfig, Layout
from featurewatch.workers.crosscoder.parallel import Parallel


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
    """Parameters over sources that stand beside each other; the matrices have one row per latent."""

    config: FitConfig
    layout: Layout
    encoder: Tensor
    """[m, D]"""
    encoder_bias: Tensor
    """[m]"""
    decoder: Tensor
    """[m, D]; of a shared decoder [m, d], d the width of the widest source"""
    decoder_bias: Tensor
    """[D]"""
    threshold: Tensor
    """`batch_topk`: [], a latent is active where f_i ||d_i|| / sqrt(price_i) is over it; the mean over batches.
    `jumprelu`: [m], the logarithm of what f_i ||d_i|| must exceed; learnt. The other two need none: []."""
    maps: tuple[Tensor, ...] = ()
    """P_s of a shared decoder: [d, d_s] each"""
    first: int = 0
    """Number of the first latent that is held here: a fit over several processes holds a part of them in each"""

    @property
    def m(self) -> int:
        """Number of latents."""
        return len(self.encoder)

    @cached_property
    def prices(self) -> Tensor:
        """[m] what each latent pays for being active."""
        return self.config.prices(self.encoder.device)[self.first : self.first + self.m]

    def parameters(self) -> list[Tensor]:
        """What is learnt by gradient, in a fixed order."""
        learnt = [self.encoder, self.encoder_bias, self.decoder, self.decoder_bias]
        return [*learnt, self.threshold] if self.config.sparsity == "jumprelu" else learnt

    def spread(self, rows: Tensor) -> Tensor:
        """Rows in the decoder's space -> beside each other in the sources' spaces, [n, D]."""
        return torch.cat([rows @ p for p in self.maps], 1) if self.maps else rows

    def collect(self, x: Tensor) -> Tensor:
        """The adjoint of `spread`: rows [n, D] -> in the decoder's space."""
        if not self.maps:
            return x
        parts = zip(x.split(self.layout.widths, 1), self.maps, strict=True)
        return torch.stack([part @ p.T for part, p in parts]).sum(0)

    def rows(self) -> Tensor:
        """What each latent writes into every source: [m, D]."""
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
        """Code of normalised activations [n, D]: a position's code depends on nothing but itself.

        source: x is [n, d_s] of this source alone, which stands in for the others (`source_dropout` trains that).
        """
        encoder = self.encoder
        if source is not None:
            encoder = encoder.split(self.layout.widths, 1)[source] * len(self.layout.widths)
        scratch = select.Scratch()
        return concatenate_rows([self._encode(rows, encoder, scratch) for rows in x.split(block)])

    def _encode(self, x: Tensor, encoder: Tensor, scratch: select.Scratch) -> Code:
        pre, norms = select.PreActivations(x, encoder, self.encoder_bias, scratch), self.norms()
        match self.config.sparsity:
            case "topk":
                return select.topk(pre, norms / self.prices.sqrt(), self.config.k, Parallel.one()).code
            case "l1":
                return select.relu(pre).code
            case "jumprelu":
                floor = self.threshold.exp() / norms
            case "batch_topk":
                floor = self.threshold * self.prices.sqrt() / norms
        return pre.code(*pre.search(floor))

    @torch.no_grad()
    def reconstruct(self, code: Code) -> Tensor:
        """[n, D] normalised reconstruction of a code."""
        return self.spread(code.decode(self.decoder)) + self.decoder_bias


def initial_crosscoder(
    config: FitConfig,
    layout: Layout,
    *,
    maps: tuple[Tensor, ...] = (),
    latents: slice | None = None,
    device: torch.device | str = "cpu",
) -> Crosscoder:
    """Random directions of `decoder_norm` over all sources; the encoder is the decoder transposed.

    maps: P_s of a shared decoder (`shared_maps`). latents: those that this process holds, None: all; each is the same
    whichever others are held.
    """
    if (config.decoder == "shared") != bool(maps):
        raise ValueError("a shared decoder needs its maps, another one has none")
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
        threshold=torch.zeros((), device=device),
        maps=maps,
        first=latents.start,
    )
    tie_designated(model)
    model.decoder *= (config.decoder_norm / model.norms()).unsqueeze(1)
    model.encoder = model.rows().clone()
    return model


def tie_designated(model: Crosscoder) -> None:
    """Gives every designated latent one norm in all sources (over sqrt(d_s): what a normalised source measures)."""
    count = min(model.config.designated - model.first, model.m)
    if count <= 0:
        return
    widths = model.layout.widths
    parts = model.decoder[:count].split(widths, 1)
    norms = torch.stack([part.norm(dim=1) / d**0.5 for part, d in zip(parts, widths, strict=True)], 1)
    wanted = norms.square().mean(1, keepdim=True).sqrt() / norms.clamp_min(1e-12)
    for source, part in enumerate(parts):
        part.mul_(wanted[:, source : source + 1])


def shared_maps(cross: list[Tensor], widths: tuple[int, ...], alike: float = 0.8) -> tuple[Tensor, ...]:
    """P_s for a shared decoder in the space of the widest source w: [d_w, d_s] with orthonormal columns.

    cross: X_s' X_w [d_s, d_w] on paired normalised activations, for each source. P_s is the orthogonal Procrustes
    solution, which makes X_s P_s' nearest to X_w; it is the identity where widths agree and that does nearly as well
    (`alike` of the solution's agreement): then the sources have one basis, and a map fitted to data would only blur it.
    """
    widest = max(range(len(widths)), key=lambda s: widths[s])
    maps = []
    for source, product in enumerate(cross):
        u, singular, v = torch.linalg.svd(product.double(), full_matrices=False)
        same = widths[source] == widths[widest] and float(product.double().trace()) >= alike * float(singular.sum())
        p = torch.eye(widths[widest], dtype=torch.float64, device=product.device) if same else (u @ v).T
        maps.append(p.float().contiguous())
    return tuple(maps)
