"""`dictionary-learning` (Marks, Karvonen, Mueller): BatchTopKTrainer in the package's loop, `trainSAE`.

Sources are concatenated, because the release on PyPI has no crosscoder. Warm-up, decay, the start of the threshold and
the count after which a latent is dead are scaled to the length of the run, since the defaults suit longer runs.
"""

import sys
from importlib.metadata import version
from types import ModuleType
from typing import Any

from torch import Tensor

from benchmarks.peers.participant import Participant, Trained

RATE = 6e-3


def train(participant: Participant) -> Trained:
    """The package's loop with activations of norm 1, as `normalize_activations` would make them."""
    # The package imports nnsight, pinned to an old release, for harvesting alone.
    harvest: Any = ModuleType("nnsight")
    harvest.LanguageModel = object
    sys.modules["nnsight"] = harvest
    from dictionary_learning.trainers import BatchTopKTrainer  # noqa: PLC0415
    from dictionary_learning.training import trainSAE  # noqa: PLC0415

    job = participant.job
    participant.scale = job.width**-0.5
    made = []

    def trainer(**options: Any) -> Any:
        made.append(BatchTopKTrainer(**options))
        made[0].dead_feature_threshold = job.dead_after
        return made[0]

    options = {
        "trainer": trainer, "steps": job.steps, "activation_dim": job.width, "dict_size": job.latents, "k": job.k,
        "layer": 0, "lm_name": "synthetic", "lr": job.rate or RATE, "warmup_steps": job.steps // 20,
        "decay_start": job.steps * 4 // 5, "threshold_start_step": job.steps // 2, "seed": job.seed,
        "device": job.device,
    }  # fmt: skip
    loop = {"steps": job.steps + 1, "device": job.device, "autocast_dtype": job.dtype}
    participant.until_done(lambda: trainSAE(participant.batches(), [options], **loop))
    model = made[0].ae

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        code = model.encode(x, use_threshold=False)
        return model.decode(code), code

    return Trained(
        evaluate, f"dictionary-learning {version('dictionary-learning')}", "SAE, BatchTopK", job.rate or RATE
    )
