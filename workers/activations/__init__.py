"""Activations of a model family: loading models, hook points, positions, harvest, and the folders they are kept in."""

from workers.activations.corpus import Document, load_corpus, load_documents, save_documents
from workers.activations.gguf import convert_gguf
from workers.activations.harvest import HarvestSummary, harvest
from workers.activations.models import compute_dtype, list_hook_points, load_model, locate_model
from workers.activations.positions import Positions
from workers.activations.shards import HarvestSpec
from workers.activations.sources import locate_activations
from workers.activations.store import ActivationSet, check_finite, open_activations

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
