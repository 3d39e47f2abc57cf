"""Activations of a model family: models and their hook points, the probe corpus and its positions, and harvesting."""
