"""Activation folders: one checkpoint's activations at its family's positions, harvested here or brought along.

A folder holds `manifest.json`, safetensors shards with the tensor `activations` [n, d_model] for each hook point
(float32, bfloat16 or float16; in position order), and `documents.safetensors` with `document` [positions] int64.
Harvested folders also hold `start` and `end` (character offsets) and `valid` there; readers accept both.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from featurewatch.workers.activations.tensorfiles import load_arrays, map_tensor, read_header, torch_dtype
from featurewatch.workers.errors import RunError

FORMAT = "featurewatch-activations/1"
MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 10_000_000


class HookPointEntry(BaseModel):
    """A hook point in a manifest."""

    model_config = ConfigDict(strict=True)

    d_model: PositiveInt
    shards: Annotated[list[str], Field(min_length=1)]
    """File names, in position order."""


class Manifest(BaseModel):
    """`manifest.json`. Keys that are not named here are nobody's business but their writer's."""

    model_config = ConfigDict(strict=True)

    format: Literal["featurewatch-activations/1"]
    model: str
    positions: PositiveInt
    hook_points: Annotated[dict[str, HookPointEntry], Field(min_length=1)]
    documents: str


@dataclass
class _Shard:
    """A mapped shard; `rows` [n, d] (bfloat16 as its bits in int16)."""

    path: Path
    rows: np.ndarray
    dtype: torch.dtype
    begin: int
    """of the rows in the file, in bytes"""


@dataclass
class _Source:
    """The shards of one hook point; `bounds` [shards + 1] are the positions at which they begin, and the end."""

    d_model: int
    shards: list[_Shard]
    bounds: np.ndarray = dataclass_field(init=False)

    def __post_init__(self) -> None:
        self.bounds = np.concatenate([[0], np.cumsum([len(shard.rows) for shard in self.shards])]).astype(np.int64)


@dataclass
class ActivationSet:
    """One checkpoint's activations at the family's positions: read-only, mapped from disk.

    `document` int64 [n_positions]; `valid` bool [n_positions]: False where no token of this model ends at the
    position, or where its norm is an outlier (attention sink). Rows that are not valid hold no information.
    """

    path: Path
    model: str
    n_positions: int
    hook_points: dict[str, int]
    document: np.ndarray
    valid: np.ndarray
    _sources: dict[str, _Source]

    def dtype(self, hook_point: str) -> torch.dtype:
        """The type in which the hook point's activations are stored."""
        return self._sources[hook_point].shards[0].dtype

    def read(self, hook_point: str, rows: slice | np.ndarray) -> torch.Tensor:
        """Rows of a hook point: [rows, d_model] in the stored dtype, a copy.

        `rows` is a slice of step 1 or a sorted int64 array (repeats allowed). ValueError where it is neither,
        IndexError beyond the last position.
        """
        source = self._sources[hook_point]
        if isinstance(rows, slice):
            begin, stop, step = rows.indices(self.n_positions)
            if step != 1:
                raise ValueError("rows must be a slice of step 1 or a sorted array")
            return _copy(source, begin, max(begin, stop))
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows[0] < 0 or rows[-1] >= self.n_positions):
            raise IndexError(f"rows {rows[0]}..{rows[-1]} of {self.n_positions} positions")
        if len(rows) > 1 and (rows[1:] < rows[:-1]).any():
            raise ValueError("rows must be sorted")
        return _gather(source, rows)

    def read_ahead(self, begins: np.ndarray, count: int) -> None:
        """Tell the system that `count` positions from each of `begins` on are wanted soon: it reads them meanwhile."""
        if not hasattr(os, "posix_fadvise"):  # a hint; not every system takes it
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
    """Rows `begin` to `stop`, from all shards that hold some of them."""
    out = np.empty((stop - begin, source.d_model), source.shards[0].rows.dtype)
    for shard, first, end in zip(source.shards, source.bounds[:-1].tolist(), source.bounds[1:].tolist(), strict=True):
        low, high = max(begin, first), min(stop, end)
        if low < high:
            out[low - begin : high - begin] = shard.rows[low - first : high - first]
    return _tensor(out, source.shards[0].dtype)


def _gather(source: _Source, rows: np.ndarray) -> torch.Tensor:
    """Sorted rows, shard by shard, so that each page of a file is touched once."""
    out = np.empty((len(rows), source.d_model), source.shards[0].rows.dtype)
    cuts = np.searchsorted(rows, source.bounds)
    for index, shard in enumerate(source.shards):
        low, high = cuts[index], cuts[index + 1]
        if low < high:
            # "clip" writes straight into `out`; the bounds were checked before.
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
    """Open and check an activation folder; the values themselves are left to `check_finite`.

    Every fault is a RunError with its own code: `manifest-missing`, `manifest-invalid`, `unknown-hook-point`,
    `path-escapes`, `unsafe-format`, `shard-missing`, `truncated-file`, `wrong-dtype`, `wrong-width`, `wrong-positions`.
    """
    manifest = _read_manifest(path)
    positions = manifest.positions
    if expected_positions is not None and positions != expected_positions:
        raise RunError("wrong-positions", f"{positions} positions; the family has {expected_positions}")
    sources = {}
    for name in hook_points:
        described = manifest.hook_points.get(name)
        if described is None:
            there = ", ".join(sorted(manifest.hook_points)) or "none"
            raise RunError("unknown-hook-point", f"hook point {name} is not among those brought along: {there}")
        width = described.d_model
        if expected_widths and expected_widths.get(name, width) != width:
            raise RunError("wrong-width", f"{name} is {width} wide; the family expects {expected_widths[name]}")
        source = _Source(width, [_open_shard(path, name, shard, width) for shard in described.shards])
        if source.bounds[-1] != positions:
            raise RunError(
                "wrong-positions", f"the shards of {name} hold {source.bounds[-1]} rows; the manifest says {positions}"
            )
        if len({shard.dtype for shard in source.shards}) > 1:
            raise RunError("wrong-dtype", f"the shards of {name} are of different types; store all of them in one")
        sources[name] = source
    document, valid = _read_documents(path, manifest)
    widths = {name: source.d_model for name, source in sources.items()}
    return ActivationSet(path, manifest.model, positions, widths, document, valid, sources)


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    if not file.is_file():
        raise RunError("manifest-missing", f"{path.name or path} holds no {MANIFEST}")
    if file.stat().st_size > _MAX_MANIFEST_BYTES:
        raise RunError("manifest-invalid", f"{MANIFEST} is larger than {_MAX_MANIFEST_BYTES} bytes")
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RunError("manifest-invalid", f"{MANIFEST}: {where}: {first['msg']}") from error


def _member(path: Path, name: str) -> Path:
    """A file of the folder that the manifest names; it may not lead out of the folder, links followed."""
    file = path / name
    if "\0" in name or not file.resolve().is_relative_to(path.resolve()):
        raise RunError("path-escapes", f"{name!r} leads out of the activation folder")
    if file.suffix != ".safetensors":
        raise RunError("unsafe-format", f"{name!r} is no .safetensors file; other formats are not opened")
    if not file.is_file():
        raise RunError("shard-missing", f"the manifest names {name!r}, which is not there")
    return file


def _open_shard(path: Path, hook_point: str, name: str, width: int) -> _Shard:
    file = _member(path, name)
    entry = read_header(file).get("activations")
    if entry is None:
        raise RunError("manifest-invalid", f"{name} holds no tensor `activations`")
    dtype = torch_dtype(entry)
    if dtype is None:
        raise RunError("wrong-dtype", f"{name} is {entry.dtype}; activations are float32, bfloat16 or float16")
    if len(entry.shape) != 2 or entry.shape[1] != width:
        raise RunError("wrong-width", f"{name} has shape {list(entry.shape)}; {hook_point} is {width} wide")
    return _Shard(file, map_tensor(file, entry), dtype, entry.begin)


def _read_documents(path: Path, manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    file = _member(path, manifest.documents)
    arrays = load_arrays(file, {"document": "I64", "valid": "BOOL"})
    if "document" not in arrays:
        raise RunError("manifest-invalid", f"{file.name} holds no tensor `document`")
    positions = manifest.positions
    for name, array in arrays.items():
        if len(array) != positions:
            raise RunError(
                "wrong-positions", f"{file.name}: {name} has {len(array)} entries; the manifest says {positions}"
            )
    return arrays["document"], arrays.get("valid", np.ones(positions, bool))


def check_finite(activations: ActivationSet, progress: Callable[[float], None] = lambda fraction: None) -> None:
    """Read everything once; RunError `not-finite` that names file, row and hook point of the first NaN or infinity.

    `progress` is called with the share that was read, after each block.
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
                        f"{shard.path.name}: row {row} of {name} (position {int(first) + row}) holds NaN or infinity",
                    )
                done += len(block)
                progress(done / total)
