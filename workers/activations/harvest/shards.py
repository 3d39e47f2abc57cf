"""The shards of a harvest: what it reads (HarvestSpec), and a model that is ready to write any group of them.

Equal specs on equal machines write equal bytes, whoever writes a group and whenever.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import nn

from featurewatch.service.kit.digests import sha256
from featurewatch.workers.activations import models
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
from featurewatch.workers.activations.models.hooks import HookPoint, choose_hook_points, drop_later_layers, probe
from featurewatch.workers.activations.models.rounding import Rounding, round_weights
from featurewatch.workers.activations.positions import Positions, Reader
from featurewatch.workers.activations.sources import fingerprint, locate, safe_files
from featurewatch.workers.activations.tensorfiles import is_whole, read_header, write_tensors
from featurewatch.workers.errors import RunError

log = structlog.get_logger("featurewatch.worker")

PLAN_VERSION = 3
"""Of the bytes that equal specs write: raise it when the reading changes."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class HarvestSpec:
    """What to read. Two harvests of equal specs write equal bytes."""

    uri: str
    """The checkpoint: see `sources`."""
    hook_points: list[str]
    corpus: list[Document]
    cache_dir: Path
    """Where fetched and converted models are kept."""
    adapter: str | None = None
    """A PEFT adapter to merge into it."""
    content: str | None = None
    """Digest of what `uri` and `adapter` hold, where that has been verified; None: files are known by their times."""
    model: str | None = None
    """What the checkpoint is called in the manifest; None: by its URIs."""
    context_length: int = 256
    """Tokens at which a document is cut."""
    positions: Positions | None = None
    """The family's positions; None: this checkpoint defines them."""
    roots: tuple[Path, ...] = ()
    """Local folders that models may be read from."""
    device: str = "cpu"
    """`cpu`, `cuda` or `cuda:N`."""
    skip_tokens: int = 1
    """Tokens at a document's beginning that are no positions (of text: special tokens never are)."""
    max_norm_ratio: float = 10.0
    """Positions whose norm is over this many medians at any hook point are not valid (attention sinks)."""
    store_dtype: str = "float32"
    """float32, bfloat16 or float16, of the shards."""
    compute_dtype: str | None = None
    """None: bfloat16 where the hardware computes in it, else float32."""
    weights: Rounding | None = None
    """What the weights are rounded to before anything is read; None: they stay as they are."""
    shard_positions: int = 16_384
    """About how many positions a shard holds: what is in memory at once, and what a kill can cost."""
    batch_tokens: int = 4_096
    """Tokens of a batch, padding included."""


@dataclass(frozen=True)
class Shards:
    """A model that is loaded, and the groups of whole documents in which it reads the corpus."""

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
        """Whether all of the group's files are there, with the values that were written. All of them are read."""
        rows = group.end - group.begin
        return all(_is_whole(file, rows, self.widths[name]) for name, file in self.files(group, folder).items())

    def write(self, group: Group, folder: Path, *, check: Callable[[], None], read: Callable[[int], None]) -> None:
        """Write the group's files: temporary name, fsync, rename.

        `check` is called before each batch and may raise; `read` after it, with its number of positions.
        """
        buffers = Buffers(group.end - group.begin, self.widths, _DTYPES[self.spec.store_dtype])
        for batch in batches(self.corpus, group, self.spec.batch_tokens):
            check()
            read(read_batch(self.model, self.points, self.corpus, group, batch, into=buffers))
        check()  # what was read may have changed under the last batch
        for name, file in self.files(group, folder).items():
            write_tensors(file, {"activations": buffers.activations[name], "norms": buffers.norms[name]})

    def terms(self) -> dict[str, Any]:
        """All that the bytes of the shards depend on, the same on every machine: digests, for times of files differ."""
        own: dict[str, Any] = {"positions": self.corpus.positions.digest}
        if self.spec.content is None:
            own["files"] = [[sha256(file) for file in safe_files(path)] for path in _places(self.spec)]
        return plan(self.spec) | own


def open_shards(spec: HarvestSpec, check: Callable[[], None]) -> Shards:
    """Load the model and tokenize the corpus. RunErrors of `models.load_model`, `choose_hook_points`,
    `tokenize_corpus`; `check` is called now and then and may raise."""
    dtype = _compute_dtype(spec)
    model, tokenizer = models.load_model(
        spec.uri, spec.adapter, roots=spec.roots, device=spec.device, dtype=dtype, cache_dir=spec.cache_dir
    )
    if spec.weights:
        round_weights(model, spec.weights)
    points = choose_hook_points(model, spec.hook_points)
    drop_later_layers(model, points)
    widths = probe(model, points)
    corpus = tokenize_corpus(
        spec.corpus,
        Reader(tokenizer, models.max_tokens(model)),
        context_length=spec.context_length,
        skip_tokens=spec.skip_tokens,
        positions=spec.positions,
        check=check,
    )
    return Shards(spec, model, points, widths, corpus, list(groups(corpus, spec.shard_positions)))


def plan(spec: HarvestSpec) -> dict[str, Any]:
    """Everything that the bytes of the shards depend on: shards of another plan are not kept."""
    return {
        "version": PLAN_VERSION,
        "model": spec.content or [uri for uri in (spec.uri, spec.adapter) if uri],
        "files": [] if spec.content else [fingerprint(path) for path in _places(spec)],
        "hook_points": spec.hook_points,
        "corpus": corpus_digest(spec.corpus),
        "positions": spec.positions.digest if spec.positions is not None else None,
        "compute": [str(_compute_dtype(spec)), torch.device(spec.device).type],
        "settings": [spec.context_length, spec.skip_tokens, spec.max_norm_ratio, spec.store_dtype],
        "layout": [spec.shard_positions, spec.batch_tokens],
    } | ({"weights": spec.weights} if spec.weights else {})


def plan_text(spec: HarvestSpec) -> str:
    """The plan as it is kept beside the shards."""
    return json.dumps(plan(spec), indent=1)


def shard_name(hook_point: str, number: int) -> str:
    """File of one group at one hook point."""
    return f"{hook_point}-{number:05d}.safetensors"


def _places(spec: HarvestSpec) -> list[Path]:
    return [locate(uri, spec.roots, spec.cache_dir) for uri in (spec.uri, spec.adapter) if uri]


def _compute_dtype(spec: HarvestSpec) -> torch.dtype:
    return _DTYPES[spec.compute_dtype] if spec.compute_dtype else models.compute_dtype(spec.device)


def _is_whole(path: Path, rows: int, width: int) -> bool:
    if not path.is_file():
        return False
    try:
        if read_header(path)["activations"].shape == (rows, width) and is_whole(path):
            return True
    except (RunError, KeyError):
        pass
    log.warning("a shard is damaged; its positions are read again", file=path.name)
    return False
