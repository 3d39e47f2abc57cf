"""Synthetic activations with a known sparse structure, for `benchmarks.fit`.

    x_s(p) = sum_i c_i(p) v_i^s + noise

Planted feature i has a firing rate that is log-uniform over two decades, and a log-normal strength c_i with a heavy
tail. Each source writes it along its own direction v_i^s. There are as many features as latents and far more than
columns, so features are superposed.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse
import torch

from featurewatch.workers.crosscoder.model import Moments

BLOCK = 8192
"""Positions generated at a time."""


@dataclass(frozen=True)
class Planted:
    """The distribution of the data."""

    widths: tuple[int, ...]
    features: int
    active: float
    """Mean number of features that fire at a position"""
    seed: int = 0
    spread: float = 0.5
    """Standard deviation of the logarithm of a strength"""
    noise: float = 0.03
    """Noise power over signal power in each source, which about bounds the FVU of any dictionary"""


def write_activations(planted: Planted, n: int, path: Path) -> None:
    """n positions as a float32 .npy file [n, D], each source centred and scaled to E||x_s||^2 = d_s."""
    random = np.random.default_rng(planted.seed)
    directions = _directions(planted, random)
    code = draw_code(planted, n, random)
    power = planted.active * np.exp(2 * planted.spread**2)
    columns = np.repeat([(power / d * planted.noise) ** 0.5 for d in planted.widths], planted.widths)
    out = np.lib.format.open_memmap(path, "w+", np.float32, (n, sum(planted.widths)))
    moments = Moments(list(planted.widths))
    for start in range(0, n, BLOCK):
        block = code[start : start + BLOCK] @ directions
        block += random.standard_normal(block.shape, np.float32) * columns.astype(np.float32)
        moments.add(torch.from_numpy(block))
        out[start : start + BLOCK] = block
    normalise = moments.normaliser()
    for start in range(0, n, BLOCK):
        out[start : start + BLOCK] = normalise(torch.from_numpy(out[start : start + BLOCK])).numpy()
    out.flush()


def draw_code(planted: Planted, n: int, random: np.random.Generator) -> scipy.sparse.csr_matrix:
    """Strengths of the planted features: [n, features], float32."""
    rates = np.exp(random.uniform(np.log(0.01), 0.0, planted.features))
    rates *= planted.active / rates.sum()
    counts = random.binomial(n, rates)
    rows = np.concatenate([random.choice(n, count, replace=False, shuffle=False) for count in counts])
    strengths = np.exp(planted.spread * random.standard_normal(len(rows), np.float32))
    latents = np.repeat(np.arange(planted.features), counts)
    return scipy.sparse.csr_matrix((strengths, (rows, latents)), (n, planted.features))


def _directions(planted: Planted, random: np.random.Generator) -> np.ndarray:
    """Unit vectors in every source, concatenated: [features, D], float32."""
    parts = [random.standard_normal((planted.features, d), np.float32) for d in planted.widths]
    return np.concatenate([part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts], 1)
