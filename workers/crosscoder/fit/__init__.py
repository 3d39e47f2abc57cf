"""Fitting: the loop over steps, one step's gradients, dead latents, the order of positions, and several processes."""

from featurewatch.workers.crosscoder.fit.loop import FitState, Step, fit, learning_rate_at, start, start_from

__all__ = ["FitState", "Step", "fit", "learning_rate_at", "start", "start_from"]
