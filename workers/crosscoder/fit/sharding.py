"""Sharding a fit's state over the ranks that share its latents, and gathering it again."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from featurewatch.workers.crosscoder.fit.loop import FitState
from featurewatch.workers.crosscoder.model import DECODER_BIAS
from featurewatch.workers.crosscoder.parallel import Parallel


def dealt(state: FitState, parallel: Parallel) -> FitState:
    """This rank's shard of a whole state."""
    share = parallel.latents(state.model.m)
    return _converted(state, share.start, lambda tensor: tensor[share].clone())


def collected(state: FitState, parallel: Parallel) -> FitState:
    """The whole state, on every rank. All ranks must call it."""
    return _converted(state, 0, parallel.over_latents)


def _converted(state: FitState, first: int, convert: Callable[[Tensor], Tensor]) -> FitState:
    """The state with every tensor that has a row per latent converted. first: index of its first latent."""
    model = state.model
    return replace(
        state,
        model=replace(
            model,
            encoder=convert(model.encoder),
            encoder_bias=convert(model.encoder_bias),
            decoder=convert(model.decoder),
            threshold=convert(model.threshold) if model.threshold.dim() else model.threshold,
            first=first,
        ),
        moments=[
            pair if place == DECODER_BIAS else (convert(pair[0]), convert(pair[1]))
            for place, pair in enumerate(state.moments)
        ],
        silent=convert(state.silent),
        fired=convert(state.fired),
    )
