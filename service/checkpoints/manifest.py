"""Checks the structure of precomputed activations (manifest, shards and documents) without reading the data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from featurewatch.service.checkpoints.faults import UnusableError
from featurewatch.service.checkpoints.jsonfile import read_json
from featurewatch.service.checkpoints.tensorfile import Tensor, read_header
from featurewatch.service.checkpoints.weights import looks, member

FORMAT = "featurewatch-activations/1"
FILE = "manifest.json"
_DTYPES = ("F32", "BF16", "F16")
# The manifest of a large harvest lists some 100,000 shards.
MAX_BYTES = 10_000_000
# An activation file has a few tensors, but there may be thousands of files.
_MAX_HEADER_BYTES = 100_000


class Shard(NamedTuple):
    """A file with rows of one hook point's activations, and its tensor [rows, d_model]."""

    file: Path
    tensor: Tensor


class Checked(NamedTuple):
    """A folder of activations that passed the checks."""

    shards: dict[str, list[Shard]]
    """The shards of each hook point, in order"""
    documents: Path


def check_activations(
    folder: Path, *, hook_points: Sequence[str], positions: int | None, widths: Mapping[str, int]
) -> None:
    """Check a folder of activations. `positions` and `widths` are the family's, as far as they are known.

    Raises UnusableError: `manifest-missing`, `manifest-invalid`, `unknown-hook-point`, `path-escapes`,
    `unsafe-format`, `shard-missing`, `truncated-file`, `too-large`, `wrong-dtype`, `wrong-width`, `wrong-positions`.
    """
    with looks:
        check(folder, read(folder), hook_points, positions, widths)


def check(
    folder: Path,
    manifest: dict[str, Any],
    hook_points: Sequence[str],
    positions: int | None,
    widths: Mapping[str, int],
) -> Checked:
    """As `check_activations`, outside of requests, for a manifest that was read."""
    count: int = manifest["positions"]
    if positions is not None and count != positions:
        raise UnusableError("wrong-positions", f"The manifest has {count} positions, but the family has {positions}.")
    missing = [name for name in hook_points if name not in manifest["hook_points"]]
    if missing:
        available = ", ".join(sorted(manifest["hook_points"]))
        raise UnusableError("unknown-hook-point", f"The manifest has no {', '.join(missing)}, only {available}.")
    entries = manifest["hook_points"]
    shards = {name: _check_source(folder, name, entries[name], count, widths.get(name)) for name in hook_points}
    return Checked(shards, _check_documents(folder, manifest["documents"], count))


def read(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder of activations. Raises UnusableError `manifest-missing`, `manifest-invalid`."""
    file = folder / FILE
    if not file.is_file():
        raise UnusableError("manifest-missing", f"{folder.name} has no manifest.json.")
    manifest = read_json(file, max_bytes=MAX_BYTES)
    fault = _fault(manifest)
    if fault:
        raise UnusableError("manifest-invalid", f"manifest.json: {fault}.")
    return manifest


def _fault(manifest: dict[str, Any]) -> str | None:
    if manifest.get("format") != FORMAT:
        return f"`format` is {manifest.get('format')!r}; it must be {FORMAT!r}"
    if not _is_count(manifest.get("positions")):
        return "`positions` must be a positive integer"
    if not isinstance(manifest.get("model"), str):
        return "`model` must be a string"
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


def _check_source(folder: Path, name: str, entry: dict[str, Any], positions: int, known: int | None) -> list[Shard]:
    width: int = entry["d_model"]
    if known is not None and width != known:
        raise UnusableError(
            "wrong-width", f"{name} has width {width}; in the family's other checkpoints it has width {known}."
        )
    shards = []
    for shard in entry["shards"]:
        file = _member(folder, shard)
        tensor = _tensor(read_header(file, max_bytes=_MAX_HEADER_BYTES), file, "activations")
        if tensor.dtype not in _DTYPES:
            raise UnusableError("wrong-dtype", f"{shard} is {tensor.dtype}; it must be one of {', '.join(_DTYPES)}.")
        if len(tensor.shape) != 2 or tensor.shape[1] != width:
            raise UnusableError("wrong-width", f"{shard} has shape {list(tensor.shape)}; {name} has width {width}.")
        shards.append(Shard(file, tensor))
    if len({shard.tensor.dtype for shard in shards}) > 1:
        raise UnusableError("wrong-dtype", f"The shards of {name} have different data types; store all in one.")
    rows = sum(shard.tensor.shape[0] for shard in shards)
    if rows != positions:
        raise UnusableError(
            "wrong-positions", f"The shards of {name} have {rows} rows, but the manifest says {positions}."
        )
    return shards


def _check_documents(folder: Path, name: str, positions: int) -> Path:
    file = _member(folder, name)
    header = read_header(file, max_bytes=_MAX_HEADER_BYTES)
    columns = {"document": ("I64", _tensor(header, file, "document"))}
    if "valid" in header:
        columns["valid"] = ("BOOL", header["valid"])
    for column, (dtype, tensor) in columns.items():
        if tensor.dtype != dtype:
            raise UnusableError("wrong-dtype", f"{name}: `{column}` is {tensor.dtype}; it must be {dtype}.")
        if tensor.shape != (positions,):
            raise UnusableError(
                "wrong-positions",
                f"{name}: `{column}` has shape {list(tensor.shape)}, but the manifest says {positions}.",
            )
    return file


def _member(folder: Path, name: str) -> Path:
    """A file that the manifest names. Even a symbolic link must not lead out of the folder."""
    file = member(folder, name)
    if not file.resolve().is_relative_to(folder.resolve()):
        raise UnusableError("path-escapes", f"{name!r} is a link to a file outside the folder {folder.name}.")
    return file


def _tensor(header: dict[str, Tensor], file: Path, name: str) -> Tensor:
    tensor = header.get(name)
    if tensor is None:
        raise UnusableError("manifest-invalid", f"{file.name} has no tensor `{name}`.")
    return tensor
