"""Reviving dead latents: AuxK in every step, and resampling a few times during a fit."""

import torch
from torch import Tensor

from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.fit.gradients import View
from featurewatch.workers.crosscoder.kernels import ByLatent, row_dots
from featurewatch.workers.crosscoder.model import Crosscoder, tie_designated
from featurewatch.workers.crosscoder.parallel import Parallel

HEAD = 256
"""Positions per batch, over all ranks, that dead latents reconstruct: a random sample, enough for the mean."""
MOST = 256
"""Maximum number of dead latents that reconstruct a position."""


def add_auxk(
    model: Crosscoder,
    batch: View,
    error: Tensor,
    dead: Tensor,
    gradients: list[Tensor],
    weight: Tensor,
    parallel: Parallel,
) -> None:
    """Add the gradient of aux_weight * mean sum_s v_s ||xhat_s + dead_s - x~_s||^2 / d_s, with xhat held fixed.

    At each position the k most active dead latents reconstruct, with k half the width. Only the first rows of a batch
    are used: they are a random sample, so the estimate is unbiased and cheap. dead: int64, of this rank; error: [b, D].
    """
    b = min(len(error), HEAD // parallel.data)
    n_dead = int(parallel.sum_over_latents(torch.tensor(len(dead), device=dead.device)))
    k = min(n_dead, max(1, model.decoder.shape[1] // 2), MOST)
    own = min(k, len(dead))
    pre = torch.addmm(model.encoder_bias[dead], batch.inputs[:b], model.encoder[dead].T)
    top = pre.relu().topk(own, dim=1)
    active = torch.ones_like(top.values, dtype=torch.bool)
    if parallel.latent > 1:
        padded = torch.nn.functional.pad(top.values, (0, k - own))
        active = top.values >= parallel.over_latents(padded, dim=1).topk(k, dim=1).values[:, -1:]
    indptr = torch.zeros(b + 1, dtype=torch.int64, device=error.device)
    torch.cumsum(active.sum(1), 0, out=indptr[1:])
    latents, values = dead[top.indices[active]], top.values[active]
    code = Code(indptr, latents, values, model.m)
    left = model.spread(parallel.sum_over_latents(code.decode(model.decoder))) + error[:b]
    if batch.valid is not None:
        left *= batch.valid[:b]
    upstream = left * weight * (model.config.aux_weight * 2 / (b * parallel.data))
    back = model.collect(upstream)
    slope = row_dots(back, model.decoder, code) * (values > 0)
    by_latent = ByLatent(code)
    gradients[0] += by_latent.sum_rows(batch.inputs[:b], slope)
    gradients[1] += by_latent.sum(slope)
    gradients[2] += by_latent.sum_rows(back, values)


def resample(
    model: Crosscoder,
    rare: Tensor,
    error: Tensor,
    weight: Tensor,
    seed: int,
    owned: Tensor | None,
    parallel: Parallel,
) -> Tensor:
    """Point rarely firing latents at badly reconstructed positions, drawn by squared loss (Bricken et al. 2023).

    rare: bool [m] of this rank; error: [b, D]. Returns the resampled latents, int64.
    """
    none = rare.new_zeros(0, dtype=torch.int64)
    every = parallel.over_latents(rare.byte()).bool()
    chance = parallel.over_data((error.square() * weight).sum(1).double().square())
    numbers = every.nonzero().squeeze(1)[: len(chance) // 2]
    if not len(numbers) or int((chance > 0).sum()) < len(numbers):
        return none
    drawn = torch.multinomial(chance.cpu(), len(numbers), generator=torch.Generator().manual_seed(seed))
    encoder_norms = parallel.over_latents(model.encoder.norm(dim=1))
    norms = parallel.over_latents(model.norms())
    first = parallel.latent_rank * model.m
    mine = (numbers >= first) & (numbers < first + model.m)
    weak = numbers[mine] - first
    # Each direction is on the data rank that holds the drawn position.
    rows = drawn.to(error.device)[mine]
    here = rows % parallel.data == parallel.data_rank
    directions = error.new_zeros(len(weak), error.shape[1])
    directions[here] = -error[rows[here] // parallel.data]
    parallel.sum_over_data(directions)
    if owned is not None:
        directions *= owned[weak]
    directions = torch.nn.functional.normalize(directions, dim=1)
    written = model.collect(directions)
    model.encoder[weak] = directions * (0.5 * encoder_norms.median())
    model.decoder[weak] = torch.nn.functional.normalize(written, dim=1)
    tie_designated(model)
    model.decoder[weak] *= (norms.median() / model.norms()[weak]).unsqueeze(1)
    model.encoder_bias[weak] = 0.0
    return weak
