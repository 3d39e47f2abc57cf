"""Harvest: run a model over the probe corpus and write its activations at the family's positions.

The corpus is worked off in groups of whole documents; a group becomes one shard for each hook point. Inside a group
batches go by length, so that little is padding, and rows are put back in position order. Only one group is in memory.
A shard gets its name when it is on the disk, and holds a digest of its values, so a killed harvest goes on behind its
last group and ends with the same bytes: a shard that does not hold what was written is written again. Groups depend on
nothing but the spec, so other workers may do some of them (`Sharing`).
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
from featurewatch.workers.activations.harvest.shards import HarvestSpec, Shards, open_shards, plan_text, shard_name
from featurewatch.workers.activations.tensorfiles import is_whole, load_arrays, write_tensors, write_text

log = structlog.get_logger("featurewatch.worker")

DOCUMENTS = "documents.safetensors"
PLAN = "plan.json"


class Progress(Protocol):
    """Called after each batch: share done, and `positions`, `total`, `positions_per_second`."""

    def __call__(self, fraction: float, /, **detail: Any) -> None: ...


class Sharing(Protocol):
    """Other workers that do groups of a harvest too."""

    def groups(self, shards: Shards, missing: list[Group], out: Path, wait: Callable[[], None]) -> Iterator[Group]:
        """The groups that the caller is to write into `out`, each one before it takes the next.

        At the end all of `missing` are there, the others' as well. `wait` is called while it waits, and may raise.
        """
        ...

    def elsewhere(self) -> int:
        """Positions that others have read by now. Cheap: called after each batch."""
        ...


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
    sharing: Sharing | None = None,
) -> HarvestSummary:
    """Write an activation folder (see `store`) at `out`, which may hold what a killed attempt left.

    `check` is called before every batch and may raise; `sharing` None: nobody else does groups. RunErrors of
    `shards.open_shards`, and `no-positions`, `not-finite`, `wrong-positions`.
    """
    check()
    plan = plan_text(spec)
    if _is_finished(out, plan):
        return _summarize(out, HarvestSummary())
    shards = open_shards(spec, check)
    check()  # after what may have taken long: `out` may be another attempt's by now
    _start(out, plan)
    summary = _write(shards, out, sharing=sharing, on_progress=on_progress, check=check)
    _finish(shards, out)
    total, rate = len(shards.corpus.positions), round(summary.positions_per_second, 1)
    on_progress(1.0, positions=total, total=total, positions_per_second=rate)
    return _summarize(out, summary)


def _is_finished(out: Path, plan: str) -> bool:
    """Whether `out` holds all of a harvest of this plan, as it was written."""
    if not _is_of(out, plan) or not (out / MANIFEST).is_file():
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
        log.warning("a finished harvest is damaged; what is not whole is read again", folder=out.name)
    return intact


def _is_of(out: Path, plan: str) -> bool:
    return (out / PLAN).is_file() and (out / PLAN).read_bytes() == plan.encode()


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def _start(out: Path, plan: str) -> None:
    """Keep what a killed attempt of the same plan left; anything else goes."""
    if out.exists() and not _is_of(out, plan):
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(".*"):
        leftover.unlink()
    write_text(out / PLAN, plan)


def _write(
    shards: Shards, out: Path, *, sharing: Sharing | None, on_progress: Progress, check: Callable[[], None]
) -> HarvestSummary:
    """Write the shards that are not there yet."""
    missing = []
    for group in shards.groups:
        if shards.are_whole(group, out):
            check()  # what is there was read in full
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
    """Which positions are valid, then the manifest: the folder is whole when that is there."""
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
