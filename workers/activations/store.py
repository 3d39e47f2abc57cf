"""Activation folders: one checkpoint's activations at its family's positions, harvested or precomputed elsewhere.

A folder holds `manifest.json`, safetensors shards with the tensor `activations` [n, d_model] for each hook point
(float32, bfloat16 or float16; in position order), and `documents.safetensors` with `document` [positions] int64.
Harvested folders also hold `start` and `end` (character offsets) and `valid` there; readers accept both.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featurewatch.service.checkpoints import manifest
from featurewatch.service.checkpoints.faults import UnusableError
from featurewatch.workers.activations.tensorfiles import load_arrays, map_tensor, refusals, torch_dtype
from featurewatch.workers.errors import RunError


@dataclass
class _Shard:
    """A memory-mapped shard; `rows` [n, d] (bfloat16 as int16 bits)."""

    path: Path
    rows: np.ndarray
    dtype: torch.dtype
    begin: int
    """Offset of the rows in the file, in bytes"""


@dataclass
class _Source:
    """The shards of one hook point. `bounds` [shards + 1]: their first positions, and the end."""

    d_model: int
    shards: list[_Shard]
    bounds: np.ndarray = dataclass_field(init=False)

    def __post_init__(self) -> None:
        self.bounds = np.concatenate([[0], np.cumsum([len(shard.rows) for shard in self.shards])]).astype(np.int64)


@dataclass
class ActivationSet:
    """One checkpoint's activations at the family's positions, read-only and memory-mapped.

    document: int64 [n_positions]. valid: bool [n_positions], False if no token of this model ends at the position or
    the norm is an outlier (attention sink). Invalid rows carry no information.
    """

    path: Path
    model: str
    n_positions: int
    hook_points: dict[str, int]
    document: np.ndarray
    valid: np.ndarray
    _sources: dict[str, _Source]

    def read(self, hook_point: str, rows: slice | np.ndarray) -> torch.Tensor:
        """A copy of rows of a hook point: [rows, d_model] in the stored dtype.

        rows: a slice with step 1 or a sorted int64 array, repeats allowed. Raises ValueError otherwise, and IndexError
        beyond the last position.
        """
        source = self._sources[hook_point]
        if isinstance(rows, slice):
            begin, stop, step = rows.indices(self.n_positions)
            if step != 1:
                raise ValueError("rows must be a slice of step 1 or a sorted array")
            return _copy(source, begin, max(begin, stop))
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows[0] < 0 or rows[-1] >= self.n_positions):
            raise IndexError(f"rows {rows[0]} to {rows[-1]} are outside the {self.n_positions} positions")
        if len(rows) > 1 and (rows[1:] < rows[:-1]).any():
            raise ValueError("rows must be sorted")
        return _gather(source, rows)

    def read_ahead(self, begins: np.ndarray, count: int) -> None:
        """Prefetch `count` positions from each of `begins` in the background."""
        if not hasattr(os, "posix_fadvise"):  # not available on every system
            return
        begins = np.sort(begins)
        for source in self._sources.values():
            for shard, first in zip(source.shards, source.bounds[:-1].tolist(), strict=True):
                inside = begins[(begins + count > first) & (begins < first + len(shard.rows))]
                width = source.d_model * shard.rows.itemsize
                with shard.path.open("rb") as file:
                    for begin in inside.tolist():
                        place = shard.begin + max(0, begin - first) * width
                        os.posix_fadvise(file.fileno(), place, count * width, os.POSIX_FADV_WILLNEED)


def _copy(source: _Source, begin: int, stop: int) -> torch.Tensor:
    """Rows `begin` to `stop`, across shards."""
    out = np.empty((stop - begin, source.d_model), source.shards[0].rows.dtype)
    for shard, first, end in zip(source.shards, source.bounds[:-1].tolist(), source.bounds[1:].tolist(), strict=True):
        low, high = max(begin, first), min(stop, end)
        if low < high:
            out[low - begin : high - begin] = shard.rows[low - first : high - first]
    return _tensor(out, source.shards[0].dtype)


def _gather(source: _Source, rows: np.ndarray) -> torch.Tensor:
    """Sorted rows, shard by shard, so that each page of a file is read once."""
    out = np.empty((len(rows), source.d_model), source.shards[0].rows.dtype)
    cuts = np.searchsorted(rows, source.bounds)
    for index, shard in enumerate(source.shards):
        low, high = cuts[index], cuts[index + 1]
        if low < high:
            # mode="clip" writes directly into `out`; bounds have been checked.
            shard.rows.take(rows[low:high] - source.bounds[index], axis=0, out=out[low:high], mode="clip")
    return _tensor(out, source.shards[0].dtype)


def _tensor(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(dtype) if dtype == torch.bfloat16 else tensor


def open_activations(
    path: Path,
    *,
    expected_positions: int | None = None,
    expected_widths: dict[str, int] | None = None,
    hook_points: list[str],
) -> ActivationSet:
    """Open an activation folder and check everything but its values (see `check_finite`).

    Raises RunError `manifest-missing`, `manifest-invalid`, `unknown-hook-point`,
    `path-escapes`, `unsafe-format`, `shard-missing`, `truncated-file`, `wrong-dtype`, `wrong-width`, `wrong-positions`.
    """
    described = _read_manifest(path)
    with refusals():
        checked = manifest.check(path, described, hook_points, expected_positions, expected_widths or {})
    sources = {
        name: _Source(described["hook_points"][name]["d_model"], [_open_shard(shard) for shard in shards])
        for name, shards in checked.shards.items()
    }
    arrays = load_arrays(checked.documents, {"document": "I64", "valid": "BOOL"})
    positions: int = described["positions"]
    valid = arrays.get("valid", np.ones(positions, bool))
    widths = {name: source.d_model for name, source in sources.items()}
    return ActivationSet(path, described["model"], positions, widths, arrays["document"], valid, sources)


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest. A run reports every fault of the file itself as `manifest-invalid`."""
    try:
        return manifest.read(path)
    except UnusableError as error:
        code = error.code if error.code == "manifest-missing" else "manifest-invalid"
        raise RunError(code, error.detail, title=error.title) from error


def _open_shard(shard: manifest.Shard) -> _Shard:
    dtype = torch_dtype(shard.tensor)
    assert dtype is not None
    return _Shard(shard.file, map_tensor(shard.file, shard.tensor), dtype, shard.tensor.begin)


def check_finite(activations: ActivationSet, progress: Callable[[float], None] = lambda fraction: None) -> None:
    """Read everything once. Raises RunError `not-finite`, which locates the first NaN or infinity.

    `progress` is called with the fraction done after each block.
    """
    total = activations.n_positions * len(activations._sources)
    done = 0
    for name, source in activations._sources.items():
        step = max(1, 8_000_000 // source.d_model)
        for shard, first in zip(source.shards, source.bounds[:-1], strict=True):
            for begin in range(0, len(shard.rows), step):
                block = _tensor(np.array(shard.rows[begin : begin + step]), shard.dtype)
                if not block.isfinite().all():
                    row = begin + int((~block.isfinite()).any(dim=1).nonzero()[0, 0])
                    raise RunError(
                        "not-finite",
                        f"{shard.path.name}: row {row} of {name} (position {int(first) + row}) is NaN or infinite.",
                    )
                done += len(block)
                progress(done / total)
