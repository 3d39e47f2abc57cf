"""Latents that fire together are one feature: they are made one before the code is kept.

A dictionary with latents to spare writes some features with two of them. Each fires where the other does, so how what
is written is divided between their decoder rows is arbitrary, and differs from checkpoint to checkpoint: ratios of such
rows say nothing. On planted data (512 features, 1,024 latents) that is one feature in twenty.

Latents k of a group with activations f_k and rows D_k become the one that writes what they wrote together:

    D = sum_k beta_k D_k,   beta_k = <f_r, f_k> / <f_r, f_r>        r: the one that writes most
    e = sum_k e_k (D_k . D) / ||D||^2                               so that f D = sum_k f_k D_k where f_k = beta_k f_r
"""

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.matching import correlations
from featurewatch.workers.crosscoder.model import Crosscoder

ALIKE = 0.8
"""Correlation of two latents' activations from which on they are one. That of a child that fires at half of its
parent's positions is 0.5; of two latents that share one feature, 0.9 and more."""
ROWS = 65_536
"""Positions that correlations are taken on."""


@torch.no_grad()
def merge_duplicates(model: Crosscoder, code: Code) -> int:
    """Make groups of latents that fire together one latent each, in place; returns how many latents have become idle.

    code: of the model, at positions that stand for all. Designated and dedicated latents stay as they are.
    """
    config = model.config
    last = config.n_features - sum(config.dedicated)
    alike = correlations(code.to_scipy(), code.to_scipy(), ALIKE).tocoo()
    plain = (alike.row != alike.col) & (np.minimum(alike.row, alike.col) >= config.designated)
    plain &= np.maximum(alike.row, alike.col) < last
    alike.data = plain.astype(np.float64)
    alike.eliminate_zeros()
    count, group = connected_components(alike, directed=False)
    if count == code.m:
        return 0
    columns, rows = code.to_scipy().tocsc(), model.rows()
    size = np.asarray(columns.power(2).sum(0)).ravel() * rows.square().sum(1).cpu().numpy()
    members = np.bincount(group, minlength=count)
    for number in np.flatnonzero(members > 1):
        latents = np.flatnonzero(group == number)
        lead = latents[size[latents].argmax()]
        share = (columns[:, [lead]].T @ columns[:, latents]).toarray().ravel()
        beta = torch.from_numpy(share / share[latents == lead]).to(rows)
        _merge(model, rows, torch.from_numpy(latents).to(rows.device), int(lead), beta)
    return code.m - count


def _merge(model: Crosscoder, rows: Tensor, latents: Tensor, lead: int, beta: Tensor) -> None:
    """latents: int64 [g]; beta: [g]."""
    together = beta @ rows[latents]
    weight = (rows[latents] @ together) / together.square().sum().clamp_min(1e-30)
    decoder, encoder = beta @ model.decoder[latents], weight @ model.encoder[latents]
    bias = weight @ model.encoder_bias[latents]
    for parameter in (model.decoder, model.encoder, model.encoder_bias):
        parameter[latents] = 0.0
    model.decoder[lead], model.encoder[lead], model.encoder_bias[lead] = decoder, encoder, bias
