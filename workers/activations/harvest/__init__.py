"""Harvesting: reading the probe corpus with a model and writing its activations, shard by shard."""
