"""featurewatch's own fit: a crosscoder with BatchTopK and default options except for the learning rate.

The encoder's product runs in bfloat16 on hardware that computes in it, as in the service; everything else is float32.
On such hardware `benchmarks.fit` adds a second run in float32 alone.
"""

from importlib.metadata import version

import torch
from torch import Tensor

from benchmarks.peers.participant import Participant, Trained
from featurewatch.workers.crosscoder.config import FitConfig, Layout
from featurewatch.workers.crosscoder.fit import fit
from featurewatch.workers.crosscoder.parallel import Parallel
from featurewatch.workers.crosscoder.preactivations import PreActivations, Scratch

RATE = 4e-3
"""The best of 0.001, 0.002, 0.004 and 0.006; such a short fit needs more than the default of 0.002."""


def train(participant: Participant) -> Trained:
    """Run `fit` with rows from memory."""
    job = participant.job
    layout = Layout(job.widths, tuple(range(len(job.widths))))
    config = FitConfig(
        job.latents, k=job.k, steps=job.steps, batch_size=job.batch, seed=job.seed, learning_rate=job.rate or RATE
    )
    state = fit(
        lambda rows: participant.next(),
        job.positions,
        layout,
        config,
        compute_dtype=getattr(torch, job.encode or job.precision),
        device=job.device,
    )
    model, scratch = state.model, Scratch()

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = PreActivations(x, model.encoder, model.encoder_bias, scratch)
        code = model.sparsity.select(model, pre, state.cut, len(x), Parallel()).code
        dense = torch.zeros(len(x), job.latents, device=x.device)
        rows = torch.arange(len(x), device=x.device).repeat_interleave(code.indptr.diff())
        dense[rows, code.latents.long()] = code.values
        return model.reconstruct(code), dense

    what = "crosscoder, BatchTopK" + (f", {job.encode} products" if job.encode else "")
    return Trained(evaluate, f"featurewatch {version('featurewatch')}", what, config.learning_rate)
