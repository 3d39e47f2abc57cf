"""`sae-lens` (Bloom, Chanin et al.): BatchTopKTrainingSAE in the package's SAETrainer, on concatenated sources.

The window after which a latent is dead is given in steps, for the same number of positions as the other trainers'.
Activations already have the norm sqrt(D) that the package's normalisation would produce.
"""

from importlib.metadata import version

from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from benchmarks.peers.participant import Participant, Trained

RATE = 3e-3


def train(participant: Participant) -> Trained:
    """`SAETrainer.fit` with the data provider exchanged."""
    job = participant.job
    config = BatchTopKTrainingSAEConfig(d_in=job.width, d_sae=job.latents, k=job.k, device=job.device)
    model = BatchTopKTrainingSAE(config)
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=(job.steps + 1) * job.batch,
            train_batch_size_samples=job.batch,
            lr=job.rate or RATE,
            lr_end=(job.rate or RATE) / 10,
            lr_warm_up_steps=job.steps // 20,
            lr_decay_steps=job.steps // 5,
            device=job.device,
            autocast=job.precision == "bfloat16",
            dead_feature_window=job.dead_after // job.batch,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        model,
        participant.batches(),
    )
    participant.until_done(trainer.fit)

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        code = model.encode(x)
        return model.decode(code), code

    return Trained(evaluate, f"sae-lens {version('sae-lens')}", "SAE, BatchTopK", job.rate or RATE)
