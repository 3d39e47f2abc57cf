"""A fit's state among the ranks that share its latents: dealt from a whole one, and collected into one again."""

from dataclasses import replace

from torch import Tensor

from featurewatch.workers.crosscoder.fit import FitState
from featurewatch.workers.crosscoder.parallel import Parallel


def dealt(state: FitState, parallel: Parallel) -> FitState:
    """This rank's part of a whole state."""
    share = parallel.latents(state.model.m)
    model = state.model
    part = replace(
        model,
        encoder=model.encoder[share].clone(),
        encoder_bias=model.encoder_bias[share].clone(),
        decoder=model.decoder[share].clone(),
        threshold=model.threshold[share].clone() if model.threshold.dim() else model.threshold,
        first=share.start,
    )
    return replace(
        state,
        model=part,
        moments=[
            pair if place == _BIAS else (pair[0][share].clone(), pair[1][share].clone())
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
            pair if place == _BIAS else (whole(pair[0]), whole(pair[1])) for place, pair in enumerate(state.moments)
        ],
        silent=whole(state.silent),
        fired=whole(state.fired),
    )


_BIAS = 3
"""Place of the decoder's bias among `Crosscoder.parameters`: every rank has all of it."""
