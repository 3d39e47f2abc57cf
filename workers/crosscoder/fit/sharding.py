"""Sharding a fit's state over the ranks that share its latents, and gathering it again."""

from dataclasses import replace

from torch import Tensor

from featurewatch.workers.crosscoder.fit.loop import FitState
from featurewatch.workers.crosscoder.model import DECODER_BIAS
from featurewatch.workers.crosscoder.parallel import Parallel


def dealt(state: FitState, parallel: Parallel) -> FitState:
    """This rank's shard of a whole state."""
    share = parallel.latents(state.model.m)
    model = state.model
    shard = replace(
        model,
        encoder=model.encoder[share].clone(),
        encoder_bias=model.encoder_bias[share].clone(),
        decoder=model.decoder[share].clone(),
        threshold=model.threshold[share].clone() if model.threshold.dim() else model.threshold,
        first=share.start,
    )
    return replace(
        state,
        model=shard,
        moments=[
            pair if place == DECODER_BIAS else (pair[0][share].clone(), pair[1][share].clone())
            for place, pair in enumerate(state.moments)
        ],
        silent=state.silent[share].clone(),
        fired=state.fired[share].clone(),
    )


def collected(state: FitState, parallel: Parallel) -> FitState:
    """The whole state, on every rank. All ranks must call it."""

    def whole(tensor: Tensor) -> Tensor:
        return parallel.over_latents(tensor)

    model = state.model
    joined = replace(
        model,
        encoder=whole(model.encoder),
        encoder_bias=whole(model.encoder_bias),
        decoder=whole(model.decoder),
        threshold=whole(model.threshold) if model.threshold.dim() else model.threshold,
        first=0,
    )
    return replace(
        state,
        model=joined,
        moments=[
            pair if place == DECODER_BIAS else (whole(pair[0]), whole(pair[1]))
            for place, pair in enumerate(state.moments)
        ],
        silent=whole(state.silent),
        fired=whole(state.fired),
    )
