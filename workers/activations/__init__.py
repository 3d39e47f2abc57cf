"""Activations of a model family: models and their hook points, the probe corpus and its positions, and harvesting."""

from featurewatch.workers.activations.corpus import Document, load_corpus, load_documents, save_documents
from featurewatch.workers.activations.harvest import HarvestSummary, harvest
from featurewatch.workers.activations.harvest.shards import HarvestSpec
from featurewatch.workers.activations.models import compute_dtype, list_hook_points, load_model, locate_model
from featurewatch.workers.activations.models.gguf import convert_gguf
from featurewatch.workers.activations.positions import Positions
from featurewatch.workers.activations.sources import locate_activations
from featurewatch.workers.activations.store import ActivationSet, check_finite, open_activations

__all__ = [
    "ActivationSet",
    "Document",
    "HarvestSpec",
    "HarvestSummary",
    "Positions",
    "check_finite",
    "compute_dtype",
    "convert_gguf",
    "harvest",
    "list_hook_points",
    "load_corpus",
    "load_documents",
    "load_model",
    "locate_activations",
    "locate_model",
    "open_activations",
    "save_documents",
]
