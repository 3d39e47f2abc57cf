"""safetensors files: checked headers, memory-mapped tensors, and atomic writes.

`service.checkpoints.tensorfile` reads the headers, for the API as well.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from featurewatch.service.checkpoints import tensorfile
from featurewatch.service.checkpoints.faults import UnusableError
from featurewatch.service.checkpoints.tensorfile import Tensor
from featurewatch.workers.errors import RunError

# numpy has no bfloat16: its bits are read as int16 and viewed as bfloat16 by torch.
_NUMPY: dict[str, np.dtype] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<i2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "BOOL": np.dtype("?"),
}
_TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@contextmanager
def refusals() -> Iterator[None]:
    """Turn UnusableError of `service.checkpoints` into a RunError with the same code."""
    try:
        yield
    except UnusableError as error:
        raise RunError(error.code, error.detail, title=error.title) from error


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, checked against the file's size without reading the data.

    Raises RunError `unsafe-format`, `too-large`, `truncated-file`.
    """
    with refusals():
        return tensorfile.read_header(path)


def torch_dtype(tensor: Tensor) -> torch.dtype | None:
    """The torch dtype of a tensor of activations; None for other types."""
    return _TORCH.get(tensor.dtype)


def map_tensor(path: Path, entry: Tensor) -> np.ndarray:
    """The tensor as a read-only, memory-mapped array (bfloat16 as int16 bits)."""
    dtype = _NUMPY[entry.dtype]
    if 0 in entry.shape:
        return np.empty(entry.shape, dtype)
    return np.asarray(np.memmap(path, dtype, "r", entry.begin, entry.shape))


def load_arrays(path: Path, names: dict[str, str]) -> dict[str, np.ndarray]:
    """One-dimensional tensors of a file as arrays in memory. `names` maps each to its expected dtype.

    Missing tensors are left out. Raises RunError `wrong-dtype`, `manifest-invalid`.
    """
    header = read_header(path)
    arrays = {}
    for name, dtype in names.items():
        if name not in header:
            continue
        if header[name].dtype != dtype:
            raise RunError("wrong-dtype", f"{path.name}: {name} is {header[name].dtype}; it must be {dtype}.")
        if len(header[name].shape) != 1:
            raise RunError(
                "manifest-invalid", f"{path.name}: {name} must have one dimension, not {header[name].shape}."
            )
        arrays[name] = np.array(map_tensor(path, header[name]))
    return arrays


def save_checked(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Save a safetensors file with the SHA-256 of its tensors in its metadata (see `is_whole`)."""
    ready = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    save_file(ready, path, metadata={"sha256": _digest((name, ready[name]) for name in sorted(ready))})


def is_whole(path: Path) -> bool:
    """Whether a file from `save_checked` is intact. Reads all of it."""
    try:
        header = read_header(path)
        with safe_open(path, framework="pt") as file:
            digest = _digest((name, file.get_tensor(name)) for name in sorted(header))
            return bool((file.metadata() or {}).get("sha256") == digest)
    except (RunError, OSError, SafetensorError):
        return False


def _digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file atomically."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        save_checked(temporary, tensors)
        settle(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(text, encoding="utf-8")
        settle(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def settle(temporary: Path, path: Path) -> None:
    """Fsync a finished file, then rename it, so that the name never precedes the bytes."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
