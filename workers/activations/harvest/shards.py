"""The shards of a harvest: their specification, and a loaded model that can write any group of them.

Equal specs write equal bytes on equal machines, no matter which worker writes a group.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import nn

from featurewatch.service.kit.digests import sha256
from featurewatch.workers.activations.corpus import Document, corpus_digest
from featurewatch.workers.activations.harvest.reading import (
    Buffers,
    Group,
    TokenizedCorpus,
    batches,
    groups,
    read_batch,
    tokenize_corpus,
)
from featurewatch.workers.activations.models import loading
from featurewatch.workers.activations.models.hooks import HookPoint, choose_hook_points, drop_later_layers, probe
from featurewatch.workers.activations.models.rounding import Rounding, round_weights
from featurewatch.workers.activations.positions import Positions, Reader
from featurewatch.workers.activations.sources.fetch import fingerprint, locate, safe_files
from featurewatch.workers.activations.tensorfiles import is_whole, read_header, write_tensors
from featurewatch.workers.errors import RunError

log = structlog.get_logger("featurewatch.worker")

PLAN_VERSION = 3
"""Increase it when equal specs start to write different bytes."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class HarvestSpec:
    """What to harvest. Two harvests with equal specs write equal bytes."""

    uri: str
    """URI of the checkpoint (see `sources`)"""
    hook_points: list[str]
    corpus: list[Document]
    cache_dir: Path
    """Cache of fetched and converted models"""
    adapter: str | None = None
    """URI of a PEFT adapter to merge into it"""
    content: str | None = None
    """Verified digest of the files behind `uri` and `adapter`; None to identify files by modification time"""
    model: str | None = None
    """The checkpoint's name in the manifest; None for its URIs"""
    context_length: int = 256
    """Tokens at which documents are truncated"""
    positions: Positions | None = None
    """The family's positions; None if this checkpoint defines them"""
    roots: tuple[Path, ...] = ()
    """Local folders that models may be read from"""
    device: str = "cpu"
    """`cpu`, `cuda` or `cuda:N`"""
    skip_tokens: int = 1
    """Text tokens at the start of a document that are not positions (special tokens never are)"""
    max_norm_ratio: float = 10.0
    """Positions whose norm exceeds this multiple of the median at any hook point are invalid (attention sinks)"""
    store_dtype: str = "float32"
    """Data type of the shards: float32, bfloat16 or float16"""
    compute_dtype: str | None = None
    """None for bfloat16 on hardware that computes in it, else float32"""
    weights: Rounding | None = None
    """Type to round the weights to; None to leave them unchanged"""
    shard_positions: int = 16_384
    """Approximate positions per shard: the amount in memory, and what an interruption can cost"""
    batch_tokens: int = 4_096
    """Tokens per batch, including padding"""


@dataclass(frozen=True)
class Shards:
    """A loaded model, and the groups of documents in which it reads the corpus."""

    spec: HarvestSpec
    model: nn.Module
    points: list[HookPoint]
    widths: dict[str, int]
    """hook point -> d_model"""
    corpus: TokenizedCorpus
    groups: list[Group]

    def files(self, group: Group, folder: Path) -> dict[str, Path]:
        """hook point -> the group's file in a folder."""
        return {name: folder / shard_name(name, group.number) for name in self.widths}

    def are_whole(self, group: Group, folder: Path) -> bool:
        """Whether all of the group's files exist and are intact. Reads them in full."""
        rows = group.end - group.begin
        return all(_is_whole(file, rows, self.widths[name]) for name, file in self.files(group, folder).items())

    def write(self, group: Group, folder: Path, *, check: Callable[[], None], read: Callable[[int], None]) -> None:
        """Write the group's files atomically.

        `check` is called before each batch and may raise; `read` is called after it with its number of positions.
        """
        buffers = Buffers(group.end - group.begin, self.widths, _DTYPES[self.spec.store_dtype])
        for batch in batches(self.corpus, group, self.spec.batch_tokens):
            check()
            read(read_batch(self.model, self.points, self.corpus, group, batch, into=buffers))
        check()  # the files may have changed during the last batch
        for name, file in self.files(group, folder).items():
            write_tensors(file, {"activations": buffers.activations[name], "norms": buffers.norms[name]})

    def terms(self) -> dict[str, Any]:
        """Everything that the shards' bytes depend on, comparable between machines: digests in place of file times."""
        own: dict[str, Any] = {"positions": self.corpus.positions.digest}
        if self.spec.content is None:
            own["files"] = [[sha256(file) for file in safe_files(path)] for path in _folders(self.spec)]
        return plan(self.spec) | own


def open_shards(spec: HarvestSpec, check: Callable[[], None]) -> Shards:
    """Load the model and tokenize the corpus. `check` is called regularly and may raise.

    Raises the RunErrors of `load_model`, `choose_hook_points` and `tokenize_corpus`.
    """
    dtype = _compute_dtype(spec)
    model, tokenizer = loading.load_model(
        spec.uri, spec.adapter, roots=spec.roots, device=spec.device, dtype=dtype, cache_dir=spec.cache_dir
    )
    if spec.weights:
        round_weights(model, spec.weights)
    points = choose_hook_points(model, spec.hook_points)
    drop_later_layers(model, points)
    widths = probe(model, points)
    corpus = tokenize_corpus(
        spec.corpus,
        Reader(tokenizer, loading.max_tokens(model)),
        context_length=spec.context_length,
        skip_tokens=spec.skip_tokens,
        positions=spec.positions,
        check=check,
    )
    return Shards(spec, model, points, widths, corpus, list(groups(corpus, spec.shard_positions)))


def plan(spec: HarvestSpec) -> dict[str, Any]:
    """Everything that the shards' bytes depend on. Shards with a different plan are discarded."""
    return {
        "version": PLAN_VERSION,
        "model": spec.content or [uri for uri in (spec.uri, spec.adapter) if uri],
        "files": [] if spec.content else [fingerprint(path) for path in _folders(spec)],
        "hook_points": spec.hook_points,
        "corpus": corpus_digest(spec.corpus),
        "positions": spec.positions.digest if spec.positions is not None else None,
        "compute": [str(_compute_dtype(spec)), torch.device(spec.device).type],
        "settings": [spec.context_length, spec.skip_tokens, spec.max_norm_ratio, spec.store_dtype],
        "layout": [spec.shard_positions, spec.batch_tokens],
    } | ({"weights": spec.weights} if spec.weights else {})


def shard_name(hook_point: str, number: int) -> str:
    """File name of one group at one hook point."""
    return f"{hook_point}-{number:05d}.safetensors"


def _folders(spec: HarvestSpec) -> list[Path]:
    return [locate(uri, spec.roots, spec.cache_dir) for uri in (spec.uri, spec.adapter) if uri]


def _compute_dtype(spec: HarvestSpec) -> torch.dtype:
    return _DTYPES[spec.compute_dtype] if spec.compute_dtype else loading.compute_dtype(spec.device)


def _is_whole(path: Path, rows: int, width: int) -> bool:
    if not path.is_file():
        return False
    try:
        if read_header(path)["activations"].shape == (rows, width) and is_whole(path):
            return True
    except (RunError, KeyError):
        pass
    log.warning("a shard is damaged; its positions are harvested again", file=path.name)
    return False
