"""Merging duplicate latents: latents that fire together are one feature.

A dictionary with more latents than features represents some features with two latents. Both fire at the same
positions, so the split between their decoder rows is arbitrary and differs between checkpoints, and ratios of such rows
are meaningless. On planted data (512 features, 1,024 latents) this affects one feature in twenty.

Latents k of a group, with activations f_k and rows D_k, become one latent that writes what they wrote together:

    D = sum_k beta_k D_k,   beta_k = <f_r, f_k> / <f_r, f_r>        r: the latent that writes most
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
"""Correlation at which two latents count as duplicates. A child that fires at half of its parent's positions has 0.5;
two latents that share a feature have 0.9 and more."""
ROWS = 65_536
"""Positions used for the correlations."""


@torch.no_grad()
def merge_duplicates(model: Crosscoder, code: Code) -> int:
    """Merge groups of latents that fire together, in place; returns the number of latents that became idle.

    code: of the model, at representative positions. Designated and dedicated latents are not merged.
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
