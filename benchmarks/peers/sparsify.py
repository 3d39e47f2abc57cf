"""`eai-sparsify` (EleutherAI): TopK SparseCoder in the package's Trainer, on concatenated sources.

The Trainer hooks a language model; here that is an identity layer after a lookup of the batch, so that the hook sees
the activations. All other costs of a step are the Trainer's own. Without Triton its decoder is `embedding_bag`.
"""

from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import torch
from sparsify import SparseCoderConfig, TrainConfig, Trainer
from torch import Tensor, nn

from benchmarks.peers.participant import Participant, Trained

OPTIMIZER, RATE = "adam", 6e-3
"""The default, signum without a schedule, is slower to learn: FVU .21 where Adam has .13 after 500 steps."""


class Lookup(nn.Module):
    """A language model whose one layer gives the activations of the batch that is due."""

    def __init__(self, participant: Participant) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Identity()])
        self.config = SimpleNamespace(num_hidden_layers=1)
        self.device = torch.device(participant.job.device)
        self.dummy_inputs = {"x": participant.x[: participant.job.batch].unsqueeze(0)}
        self.batch: Tensor | None = None

    @property
    def base_model(self) -> "Lookup":
        """The model without a head: itself."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """[1, b] tokens -> [1, b, D] activations."""
        return self.layers[0](x if self.batch is None else self.batch)


class Steps(torch.utils.data.Dataset):
    """One sequence a step; its tokens are none, its activations go to the model."""

    def __init__(self, participant: Participant, model: Lookup) -> None:
        self.participant, self.model = participant, model
        self.tokens = torch.zeros(participant.job.batch, dtype=torch.int64)

    def __len__(self) -> int:
        return self.participant.job.steps + 1

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        self.model.batch = self.participant.next().unsqueeze(0)
        return {"input_ids": self.tokens}


def train(participant: Participant) -> Trained:
    """`Trainer.fit` with the model and the data set exchanged."""
    job = participant.job
    model = Lookup(participant)
    own: dict[str, Any] = {"optimizer": OPTIMIZER, "lr": job.rate or RATE, "lr_warmup_steps": job.steps // 20}
    config = TrainConfig(
        SparseCoderConfig(num_latents=job.latents, k=job.k),
        batch_size=1, layers=[0], init_seeds=[job.seed], log_to_wandb=False, save_every=10**9, **own,
    )  # fmt: skip
    trainer = Trainer(config, Steps(participant, model), model)
    participant.until_done(trainer.fit)
    coder = next(iter(trainer.saes.values()))

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        found = coder(x)
        code = torch.zeros(len(x), job.latents, device=x.device)
        return found.sae_out, code.scatter_(1, found.latent_indices, found.latent_acts.float())

    return Trained(evaluate, f"eai-sparsify {version('eai-sparsify')}", f"SAE, TopK, {OPTIMIZER}", job.rate or RATE)
