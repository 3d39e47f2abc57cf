"""A checkpoint's model, and texts as its features read them. Needs what workers need: torch and transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
import torch

from featurewatch.service.config import Settings
from featurewatch.workers.activations.models.hooks import capture, choose_hook_points, without_later_layers
from featurewatch.workers.activations.models.loading import compute_dtype, load_model, max_tokens
from featurewatch.workers.activations.positions import Reader

if TYPE_CHECKING:
    from featurewatch.family import Dictionary

LONGEST = 4096
"""Tokens of a text that are read, where the model itself has no limit."""


class LoadedModel:
    """A model in memory. Read as a harvest reads it: same tokens, same hook points, same type of number."""

    def __init__(self, uri: str, adapter: str | None, device: str) -> None:
        """Raises workers.errors.RunError, with what is wrong, where the model cannot be loaded."""
        # Whoever runs this reads their own files: there is no root to stay under.
        roots, cache = (Path("/"),), Settings().data_dir / "cache"
        self.device = device
        self.model, tokenizer = load_model(
            uri, adapter, roots=roots, device=device, dtype=compute_dtype(device), cache_dir=cache
        )
        self.reader = Reader(tokenizer, max_tokens(self.model))

    @torch.no_grad()
    def encode(
        self, texts: Sequence[str], hook_point: str, dictionary: "Dictionary"
    ) -> tuple[dict[str, list[Any]], scipy.sparse.csr_matrix]:
        """(columns of the token table, code [tokens, features]). One text at a time: notebooks ask for few."""
        columns: dict[str, list[Any]] = {"text": [], "start": [], "end": [], "token": []}
        parts = [scipy.sparse.csr_matrix((0, len(dictionary.feature_ids)), dtype=np.float32)]
        points = choose_hook_points(self.model, [hook_point])
        with without_later_layers(self.model, points):
            for number, (text, read) in enumerate(zip(texts, self.reader.read(texts, LONGEST), strict=True)):
                if not len(read.token):
                    continue
                with capture(points) as seen:
                    self.model(input_ids=torch.from_numpy(read.ids).unsqueeze(0).to(self.device))
                x = seen[hook_point][0, torch.from_numpy(read.token).to(self.device)].float().cpu()
                parts.append(scipy.sparse.csr_matrix(dictionary.encode(x).numpy()))
                columns["text"] += [number] * len(read.token)
                columns["start"] += read.start.tolist()
                columns["end"] += read.end.tolist()
                columns["token"] += [text[a:b] for a, b in zip(read.start, read.end, strict=True)]
        return columns, scipy.sparse.csr_matrix(scipy.sparse.vstack(parts))
