"""Harvesting: reading the probe corpus with a model and writing its activations, shard by shard."""

from featurewatch.workers.activations.harvest.run import HarvestSummary, harvest
from featurewatch.workers.activations.harvest.shards import HarvestSpec

__all__ = ["HarvestSpec", "HarvestSummary", "harvest"]
