"""Checks the structure of precomputed activations (manifest, shards and documents) without reading the data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featurewatch.service.checkpoints.faults import UnusableError
from featurewatch.service.checkpoints.jsonfile import read_json
from featurewatch.service.checkpoints.tensorfile import Tensor, read_header
from featurewatch.service.checkpoints.weights import looks, member

FORMAT = "featurewatch-activations/1"
FILE = "manifest.json"
_DTYPES = ("F32", "BF16", "F16")
# An activation file has a few tensors, but there may be thousands of files.
_MAX_HEADER_BYTES = 100_000


def check_activations(
    folder: Path, *, hook_points: Sequence[str], positions: int | None, widths: Mapping[str, int]
) -> None:
    """Check a folder of activations. `positions` and `widths` are the family's, as far as they are known.

    Raises UnusableError: `manifest-missing`, `manifest-invalid`, `unknown-hook-point`, `path-escapes`,
    `unsafe-format`, `shard-missing`, `truncated-file`, `too-large`, `wrong-dtype`, `wrong-width`, `wrong-positions`.
    """
    with looks:
        _check(folder, hook_points, positions, widths)


def _check(folder: Path, hook_points: Sequence[str], positions: int | None, widths: Mapping[str, int]) -> None:
    manifest = read(folder)
    count: int = manifest["positions"]
    if positions is not None and count != positions:
        raise UnusableError("wrong-positions", f"The manifest has {count} positions, but the family has {positions}.")
    missing = [name for name in hook_points if name not in manifest["hook_points"]]
    if missing:
        available = ", ".join(sorted(manifest["hook_points"]))
        raise UnusableError("unknown-hook-point", f"The manifest has no {', '.join(missing)}, only {available}.")
    for name in hook_points:
        _check_source(folder, name, manifest["hook_points"][name], count, widths.get(name))
    _check_documents(folder, manifest["documents"], count)


def read(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder of activations. Raises UnusableError `manifest-missing`, `manifest-invalid`."""
    file = folder / FILE
    if not file.is_file():
        raise UnusableError("manifest-missing", f"{folder.name} has no manifest.json.")
    manifest = read_json(file)
    fault = _fault(manifest)
    if fault:
        raise UnusableError("manifest-invalid", f"manifest.json: {fault}.")
    return manifest


def _fault(manifest: dict[str, Any]) -> str | None:
    if manifest.get("format") != FORMAT:
        return f"`format` is {manifest.get('format')!r}; it must be {FORMAT!r}"
    if not _is_count(manifest.get("positions")):
        return "`positions` must be a positive integer"
    if not isinstance(manifest.get("documents"), str):
        return "`documents` must be a file name"
    described = manifest.get("hook_points")
    if not isinstance(described, dict) or not described:
        return "`hook_points` must be an object with a member for each hook point"
    return next(filter(None, (_source_fault(name, entry) for name, entry in described.items())), None)


def _source_fault(name: str, entry: Any) -> str | None:
    if not isinstance(entry, dict) or not _is_count(entry.get("d_model")):
        return f"{name}: `d_model` must be a positive integer"
    shards = entry.get("shards")
    if not isinstance(shards, list) or not shards or not all(isinstance(shard, str) for shard in shards):
        return f"{name}: `shards` must be a list of file names"
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_source(folder: Path, name: str, entry: dict[str, Any], positions: int, known: int | None) -> None:
    width: int = entry["d_model"]
    if known is not None and width != known:
        raise UnusableError(
            "wrong-width", f"{name} has width {width}; in the family's other checkpoints it has width {known}."
        )
    rows = 0
    for shard in entry["shards"]:
        tensor = _tensor(member(folder, shard), "activations")
        if tensor.dtype not in _DTYPES:
            raise UnusableError("wrong-dtype", f"{shard} is {tensor.dtype}; it must be one of {', '.join(_DTYPES)}.")
        if len(tensor.shape) != 2 or tensor.shape[1] != width:
            raise UnusableError("wrong-width", f"{shard} has shape {list(tensor.shape)}; {name} has width {width}.")
        rows += tensor.shape[0]
    if rows != positions:
        raise UnusableError(
            "wrong-positions", f"The shards of {name} have {rows} rows, but the manifest says {positions}."
        )


def _check_documents(folder: Path, name: str, positions: int) -> None:
    tensor = _tensor(member(folder, name), "document")
    if tensor.dtype != "I64":
        raise UnusableError("wrong-dtype", f"{name}: `document` is {tensor.dtype}; it must be I64.")
    if tensor.shape != (positions,):
        raise UnusableError(
            "wrong-positions", f"{name}: `document` has shape {list(tensor.shape)}, but the manifest says {positions}."
        )


def _tensor(file: Path, name: str) -> Tensor:
    tensor = read_header(file, max_bytes=_MAX_HEADER_BYTES).get(name)
    if tensor is None:
        raise UnusableError("manifest-invalid", f"{file.name} has no tensor `{name}`.")
    return tensor
