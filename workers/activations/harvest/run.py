"""Harvest: run a model over the probe corpus and write its activations at the family's positions.

The corpus is processed in groups of whole documents; each group becomes one shard per hook point. Within a group,
batches are sorted by length to minimise padding, and rows are put back in position order. Only one group is in memory.
A shard is renamed into place once it is on disk, and contains a digest of its values, so an interrupted harvest resumes
after its last group and ends with the same bytes; damaged shards are written again. Groups depend only on the spec, so
other workers may process some of them (`Sharing`).
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import structlog
import torch

from featurewatch.service.checkpoints.manifest import FILE as MANIFEST
from featurewatch.service.checkpoints.manifest import FORMAT
from featurewatch.workers.activations.harvest.reading import Group
from featurewatch.workers.activations.harvest.shards import HarvestSpec, Shards, open_shards, plan, shard_name
from featurewatch.workers.activations.tensorfiles import is_whole, load_arrays, write_tensors, write_text

log = structlog.get_logger("featurewatch.worker")

DOCUMENTS = "documents.safetensors"
PLAN = "plan.json"


class Progress(Protocol):
    """Called after each batch with the fraction done, `positions`, `total` and `positions_per_second`."""

    def __call__(self, fraction: float, /, **detail: Any) -> None: ...


class Sharing(Protocol):
    """Other workers that process groups of the same harvest."""

    def groups(self, shards: Shards, missing: list[Group], out: Path, wait: Callable[[], None]) -> Iterator[Group]:
        """The groups that the caller must write into `out`, each one before it requests the next.

        When it is exhausted, all of `missing` exist. `wait` is called while waiting for others, and may raise.
        """

    def elsewhere(self) -> int:
        """Positions that others have read so far. Cheap enough to call after each batch."""


@dataclass
class HarvestSummary:
    """The result of a harvest. The rate excludes shards that already existed."""

    n_positions: int = 0
    valid_share: float = 0.0
    seconds: float = 0.0
    """Forward passes and writing, excluding loading the model"""
    positions_per_second: float = 0.0
    widths: dict[str, int] = field(default_factory=dict)


def harvest(
    spec: HarvestSpec,
    out: Path,
    *,
    on_progress: Progress = lambda fraction, /, **detail: None,
    check: Callable[[], None] = lambda: None,
    sharing: Sharing | None = None,
) -> HarvestSummary:
    """Write an activation folder (see `store`) at `out`, resuming an earlier attempt if there is one.

    check: called before every batch, may raise. sharing: None to process all groups here. Raises the RunErrors of
    `open_shards`, and `no-positions`, `not-finite`, `wrong-positions`.
    """
    check()
    plan_text = json.dumps(plan(spec), indent=1)
    if _is_finished(out, plan_text):
        return _summarize(out, HarvestSummary())
    shards = open_shards(spec, check)
    check()  # loading may have taken long, and `out` may belong to another attempt by now
    _start(out, plan_text)
    summary = _write(shards, out, sharing=sharing, on_progress=on_progress, check=check)
    _finish(shards, out)
    total, rate = len(shards.corpus.positions), round(summary.positions_per_second, 1)
    on_progress(1.0, positions=total, total=total, positions_per_second=rate)
    return _summarize(out, summary)


def _is_finished(out: Path, plan_text: str) -> bool:
    """Whether `out` contains a complete and intact harvest of this plan."""
    if not _is_of(out, plan_text) or not (out / MANIFEST).is_file():
        return False
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        intact = manifest.pop("digest") == _digest(manifest)
    except (ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if intact:
        shards = [name for point in manifest["hook_points"].values() for name in point["shards"]]
        intact = all(is_whole(out / name) for name in (*shards, DOCUMENTS))
    if not intact:
        log.warning("a finished harvest is damaged; damaged shards are harvested again", folder=out.name)
    return intact


def _is_of(out: Path, plan_text: str) -> bool:
    return (out / PLAN).is_file() and (out / PLAN).read_bytes() == plan_text.encode()


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def _start(out: Path, plan_text: str) -> None:
    """Keep the shards of an earlier attempt with the same plan; remove everything else."""
    if out.exists() and not _is_of(out, plan_text):
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(".*"):
        leftover.unlink()
    write_text(out / PLAN, plan_text)


def _write(
    shards: Shards, out: Path, *, sharing: Sharing | None, on_progress: Progress, check: Callable[[], None]
) -> HarvestSummary:
    """Write the shards that are not there yet."""
    missing = []
    for group in shards.groups:
        if shards.are_whole(group, out):
            check()  # verifying a shard reads all of it
        else:
            missing.append(group)
    total, wanted = len(shards.corpus.positions), sum(group.end - group.begin for group in missing)
    began, own = time.monotonic(), 0
    shared = sharing if len(missing) > 1 else None

    def read(positions: int) -> None:
        nonlocal own
        own += positions
        new = min(own + (shared.elsewhere() if shared else 0), wanted)
        done, rate = total - wanted + new, new / max(time.monotonic() - began, 1e-9)
        on_progress(done / total, positions=done, total=total, positions_per_second=round(rate, 1))

    def wait() -> None:
        check()
        read(0)

    for group in shared.groups(shards, missing, out, wait) if shared else missing:
        shards.write(group, out, check=check, read=read)
    seconds = time.monotonic() - began
    return HarvestSummary(seconds=seconds, positions_per_second=wanted / max(seconds, 1e-9))


def _finish(shards: Shards, out: Path) -> None:
    """Write which positions are valid, and then the manifest, which marks the folder as complete."""
    spec, corpus, widths = shards.spec, shards.corpus, shards.widths
    numbers = [group.number for group in shards.groups]
    valid = corpus.token >= 0
    for name in widths:
        parts = [load_arrays(out / shard_name(name, number), {"norms": "F32"})["norms"] for number in numbers]
        norms = np.concatenate(parts)
        if (corpus.token >= 0).any():
            valid &= norms <= spec.max_norm_ratio * np.median(norms[corpus.token >= 0])
    positions = corpus.positions
    arrays = {"document": positions.document, "start": positions.start, "end": positions.end, "valid": valid}
    write_tensors(out / DOCUMENTS, {name: torch.from_numpy(array) for name, array in arrays.items()})
    hook_points = {
        name: {"d_model": width, "shards": [shard_name(name, number) for number in numbers]}
        for name, width in widths.items()
    }
    manifest = {
        "format": FORMAT,
        "model": spec.model or (spec.uri if spec.adapter is None else f"{spec.uri} + {spec.adapter}"),
        "positions": len(positions),
        "hook_points": hook_points,
        "documents": DOCUMENTS,
        "positions_digest": positions.digest,
        "plan": hashlib.sha256((out / PLAN).read_bytes()).hexdigest(),
    }
    write_text(out / MANIFEST, json.dumps(manifest | {"digest": _digest(manifest)}, indent=1))


def _summarize(out: Path, summary: HarvestSummary) -> HarvestSummary:
    manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    valid = load_arrays(out / DOCUMENTS, {"valid": "BOOL"})["valid"]
    summary.n_positions = len(valid)
    summary.valid_share = float(valid.mean())
    summary.widths = {name: described["d_model"] for name, described in manifest["hook_points"].items()}
    return summary
