"""Harvest: run a model over the probe corpus and write its activations at the family's positions.

The corpus is worked off in groups of whole documents; a group becomes one shard for each hook point. Inside a group
batches go by length, so that little is padding, and rows are put back in position order. Only one group is in memory.
A shard that is there is whole (temporary name, fsync, rename), so a killed harvest goes on behind its last group and
ends with the same bytes.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from workers.activations import models
from workers.activations.corpus import Document, corpus_digest
from workers.activations.hooks import choose_hook_points, drop_later_layers, probe
from workers.activations.positions import Positions, Reader
from workers.activations.reading import Buffers, Group, TokenizedCorpus, batches, groups, read_batch, tokenize_corpus
from workers.activations.sources import fingerprint, locate
from workers.activations.store import FORMAT, MANIFEST
from workers.activations.tensorfiles import load_arrays, read_header, write_tensors, write_text
from workers.errors import RunError

DOCUMENTS = "documents.safetensors"
PLAN = "plan.json"
_PLAN_VERSION = 1
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Progress(Protocol):
    """Called after each batch: share done, and `positions`, `total`, `positions_per_second`."""

    def __call__(self, fraction: float, /, **detail: Any) -> None: ...


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
    shard_positions: int = 16_384
    """About how many positions a shard holds: what is in memory at once, and what a kill can cost."""
    batch_tokens: int = 4_096
    """Tokens of a batch, padding included."""


@dataclass
class HarvestSummary:
    """What a harvest did. Positions in shards that were there already count as read, but not in the rate."""

    n_positions: int = 0
    valid_share: float = 0.0
    seconds: float = 0.0
    """Forward passes and writing, without loading the model."""
    positions_per_second: float = 0.0
    widths: dict[str, int] = field(default_factory=dict)


def harvest(
    spec: HarvestSpec,
    out: Path,
    *,
    on_progress: Progress = lambda fraction, /, **detail: None,
    check: Callable[[], None] = lambda: None,
) -> HarvestSummary:
    """Write an activation folder (see `store`) at `out`, which may hold what a killed attempt left.

    `check` is called before every batch and may raise. RunErrors of `models.load_model` and
    `hooks.choose_hook_points`, and `no-positions`, `not-finite`, `wrong-positions`.
    """
    check()
    dtype = _DTYPES[spec.compute_dtype] if spec.compute_dtype else models.compute_dtype(spec.device)
    plan = _plan(spec, dtype)
    if _is_finished(out, plan):
        return _summarize(out, HarvestSummary())
    model, tokenizer = models.load_model(
        spec.uri, spec.adapter, roots=spec.roots, device=spec.device, dtype=dtype, cache_dir=spec.cache_dir
    )
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
    _start(out, plan)

    def read(group: Group, batch: list[int], into: Buffers) -> int:
        return read_batch(model, points, corpus, group, batch, into=into)

    summary = _write_shards(spec, out, read, corpus=corpus, widths=widths, on_progress=on_progress, check=check)
    _finish(spec, out, corpus, widths)
    total, rate = len(corpus.positions), round(summary.positions_per_second, 1)
    on_progress(1.0, positions=total, total=total, positions_per_second=rate)
    return _summarize(out, summary)


def _plan(spec: HarvestSpec, dtype: torch.dtype) -> str:
    """Everything that the bytes of the shards depend on, as JSON: shards of another plan are not kept."""
    places = [uri for uri in (spec.uri, spec.adapter) if uri]
    prints = [fingerprint(locate(uri, spec.roots, spec.cache_dir)) for uri in places]
    return json.dumps(
        {
            "version": _PLAN_VERSION,
            "model": places,
            "files": prints,
            "hook_points": spec.hook_points,
            "corpus": corpus_digest(spec.corpus),
            "positions": spec.positions.digest if spec.positions is not None else None,
            "compute": [str(dtype), torch.device(spec.device).type],
            "settings": [spec.context_length, spec.skip_tokens, spec.max_norm_ratio, spec.store_dtype],
            "layout": [spec.shard_positions, spec.batch_tokens],
        },
        indent=1,
    )


def _is_finished(out: Path, plan: str) -> bool:
    return (out / MANIFEST).is_file() and (out / PLAN).is_file() and (out / PLAN).read_text(encoding="utf-8") == plan


def _start(out: Path, plan: str) -> None:
    """Keep what a killed attempt of the same plan left; anything else goes."""
    if out.exists() and not ((out / PLAN).is_file() and (out / PLAN).read_text(encoding="utf-8") == plan):
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(".*"):
        leftover.unlink()
    write_text(out / PLAN, plan)


def _shard_name(hook_point: str, number: int) -> str:
    return f"{hook_point}-{number:05d}.safetensors"


def _is_whole(path: Path, rows: int, width: int) -> bool:
    if not path.is_file():
        return False
    try:
        return read_header(path)["activations"].shape == (rows, width)
    except (RunError, KeyError):
        return False


def _write_shards(
    spec: HarvestSpec,
    out: Path,
    read: Callable[[Group, list[int], Buffers], int],
    *,
    corpus: TokenizedCorpus,
    widths: dict[str, int],
    on_progress: Progress,
    check: Callable[[], None],
) -> HarvestSummary:
    """Write the shards that are not there yet; `read` fills one batch's rows of a group's buffers."""
    began, kept, total = time.monotonic(), 0, len(corpus.positions)
    for group in groups(corpus, spec.shard_positions):
        count = group.end - group.begin
        files = {name: out / _shard_name(name, group.number) for name in widths}
        if all(_is_whole(file, count, widths[name]) for name, file in files.items()):
            kept += count
            continue
        buffers = Buffers(count, widths, _DTYPES[spec.store_dtype])
        done = group.begin
        for batch in batches(corpus, group, spec.batch_tokens):
            check()
            done += read(group, batch, buffers)
            rate = (done - kept) / max(time.monotonic() - began, 1e-9)
            on_progress(done / total, positions=done, total=total, positions_per_second=round(rate, 1))
        for name, file in files.items():
            write_tensors(file, {"activations": buffers.activations[name], "norms": buffers.norms[name]})
    seconds = time.monotonic() - began
    return HarvestSummary(seconds=seconds, positions_per_second=(total - kept) / max(seconds, 1e-9))


def _finish(spec: HarvestSpec, out: Path, corpus: TokenizedCorpus, widths: dict[str, int]) -> None:
    """Which positions are valid, then the manifest: the folder is whole when that is there."""
    numbers = [group.number for group in groups(corpus, spec.shard_positions)]
    valid = corpus.token >= 0
    for name in widths:
        parts = [load_arrays(out / _shard_name(name, number), {"norms": "F32"})["norms"] for number in numbers]
        norms = np.concatenate(parts)
        if (corpus.token >= 0).any():
            valid &= norms <= spec.max_norm_ratio * np.median(norms[corpus.token >= 0])
    positions = corpus.positions
    arrays = {"document": positions.document, "start": positions.start, "end": positions.end, "valid": valid}
    write_tensors(out / DOCUMENTS, {name: torch.from_numpy(array) for name, array in arrays.items()})
    hook_points = {
        name: {"d_model": width, "shards": [_shard_name(name, number) for number in numbers]}
        for name, width in widths.items()
    }
    manifest = {
        "format": FORMAT,
        "model": spec.uri if spec.adapter is None else f"{spec.uri} + {spec.adapter}",
        "positions": len(positions),
        "hook_points": hook_points,
        "documents": DOCUMENTS,
        "positions_digest": positions.digest,
        "plan": hashlib.sha256((out / PLAN).read_bytes()).hexdigest(),
    }
    write_text(out / MANIFEST, json.dumps(manifest, indent=1))


def _summarize(out: Path, summary: HarvestSummary) -> HarvestSummary:
    manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    valid = load_arrays(out / DOCUMENTS, {"valid": "BOOL"})["valid"]
    summary.n_positions = len(valid)
    summary.valid_share = float(valid.mean())
    summary.widths = {name: described["d_model"] for name, described in manifest["hook_points"].items()}
    return summary
