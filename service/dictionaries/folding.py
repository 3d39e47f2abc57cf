"""Folds a source's dictionary into a sparse autoencoder on raw activations. Pure numpy, no I/O.

The service works on x~ = (x - mean) g, with g = sqrt(d) / rms of the source (docs/verdicts.md, section 1). A source has
its own read-out and decoder,

    f = relu(x~ R + c) / slope          x~hat = f D + b

and with the normalisation folded in, on x itself:

    f = relu(x W_enc + b_enc)           W_enc = g R / slope,  b_enc = (c - g mean R) / slope
    xhat = f W_dec + b_dec              W_dec = D / g,        b_dec = mean + b / g
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
MIN_SLOPE = 0.25
"""Smallest slope of a read-out that is corrected. Dividing by less would mostly amplify noise."""


class Autoencoder(NamedTuple):
    """f = relu(x W_enc + b_enc), xhat = f W_dec + b_dec, in the model's own units. float32."""

    W_enc: Floats
    """[d, m]"""
    b_enc: Floats
    """[m]"""
    W_dec: Floats
    """[m, d]"""
    b_dec: Floats
    """[d]"""

    def encode(self, x: Floats) -> Floats:
        """Activations [n, d] -> features [n, m]."""
        return np.maximum(x @ self.W_enc + self.b_enc, 0.0)

    def decode(self, f: Floats) -> Floats:
        """Features [n, m] -> activations [n, d]."""
        return f @ self.W_dec + self.b_dec


def fold(tensors: Mapping[str, Floats]) -> Autoencoder:
    """The autoencoder from the tensors of a dictionary file (`GET .../checkpoints/{name}/dictionary`)."""
    mean, rms = tensors["mean"].astype(np.float64), float(tensors["rms"])
    g = len(mean) ** 0.5 / rms
    slope = np.maximum(tensors.get("readout_slope", np.ones_like(tensors["readout_bias"])), MIN_SLOPE)
    shift = g * (mean @ tensors["readout"])
    parts = (
        g * tensors["readout"] / slope,
        (tensors["readout_bias"] - shift) / slope,
        tensors["decoder"] / g,
        mean + tensors["bias"] / g,
    )
    return Autoencoder(*(np.ascontiguousarray(part, np.float32) for part in parts))


def unit_rows(folded: Autoencoder) -> Autoencoder:
    """The same reconstruction with decoder rows of unit norm, so that activations measure what a feature writes.

    A feature with a zero row gets an arbitrary direction and is never active.
    """
    norms = np.linalg.norm(folded.W_dec.astype(np.float64), axis=1)
    rows = folded.W_dec / np.where(norms > 0, norms, 1.0)[:, None]
    rows[norms == 0, 0] = 1.0
    parts = folded.W_enc * norms, folded.b_enc * norms, rows, folded.b_dec
    return Autoencoder(*(np.ascontiguousarray(part, np.float32) for part in parts))
