"""The encoder's dense product alone, `x @ W.T`: the part that no step can avoid."""

import torch

from benchmarks.peers.participant import Participant


def train(participant: Participant) -> None:
    """As many products as the trainers take steps, all on one batch, to exclude gathering."""
    job = participant.job
    weight = torch.randn(job.latents, job.width, device=job.device, dtype=job.dtype)
    x = participant.x[: job.batch].to(job.dtype, copy=True)

    def products() -> None:
        while True:
            participant.allow()
            x @ weight.T

    participant.until_done(products)
