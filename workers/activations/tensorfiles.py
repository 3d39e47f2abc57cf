"""safetensors files: headers checked before anything is read, tensors mapped, files written whole or not at all.

A safetensors file is 8 bytes (little endian: length of the header), the header (JSON: name -> dtype, shape,
data_offsets) and the data. Format: https://huggingface.co/docs/safetensors
"""

import json
import math
import os
import struct
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from workers.errors import RunError

MAX_HEADER_BYTES = 100_000_000
_ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
# bfloat16 has no numpy type: its bits travel as int16 and become bfloat16 as a torch view.
_NUMPY: dict[str, np.dtype] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<i2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "BOOL": np.dtype("?"),
}
_TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class TensorEntry(NamedTuple):
    """One tensor of a file. `begin` is counted in bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The torch type of a tensor of activations; None for any other type."""
        return _TORCH.get(self.dtype)


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file, checked against its size. The data are not read.

    RunError `unsafe-format` for a pickle or zip in disguise, `truncated-file` for a file that ends too early or
    whose header makes no sense.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            raise RunError("unsafe-format", f"{path.name} is a pickle or zip file, not safetensors; it is not opened")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise RunError("truncated-file", f"{path.name} is truncated or no safetensors file: no whole header")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        entries = {name: _entry(name, fields, 8 + length) for name, fields in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError("truncated-file", f"{path.name} has a damaged safetensors header: {error}") from error
    needed = max((entry.end for entry in entries.values()), default=8 + length)
    if needed != size:
        kind = "truncated" if needed > size else "followed by bytes that belong to no tensor"
        raise RunError("truncated-file", f"{path.name} is {kind}: {size} bytes, its header says {needed}")
    return entries


def _entry(name: str, fields: dict[str, Any], data_start: int) -> TensorEntry:
    begin, end = fields["data_offsets"]
    shape = tuple(fields["shape"])
    item = _ITEM_BYTES.get(fields["dtype"])
    sane = all(isinstance(number, int) and number >= 0 for number in (begin, end, *shape)) and begin <= end
    if not sane or (item is not None and end - begin != item * math.prod(shape)):
        raise ValueError(f"tensor {name!r} has offsets that do not fit its shape")
    return TensorEntry(fields["dtype"], shape, data_start + begin, data_start + end)


def map_tensor(path: Path, entry: TensorEntry) -> np.ndarray:
    """The tensor as a read-only array that is mapped from disk (bfloat16: its bits as int16)."""
    dtype = _NUMPY[entry.dtype]
    if 0 in entry.shape:
        return np.empty(entry.shape, dtype)
    return np.asarray(np.memmap(path, dtype, "r", entry.begin, entry.shape))


def load_arrays(path: Path, names: dict[str, str]) -> dict[str, np.ndarray]:
    """Named tensors of a file as arrays in memory; `names` maps each to the dtype that it must have, in one dimension.

    Tensors that the file lacks are left out. RunError `wrong-dtype`, `manifest-invalid`.
    """
    header = read_header(path)
    arrays = {}
    for name, dtype in names.items():
        if name not in header:
            continue
        if header[name].dtype != dtype:
            raise RunError("wrong-dtype", f"{path.name}: {name} is {header[name].dtype}, it must be {dtype}")
        if len(header[name].shape) != 1:
            raise RunError("manifest-invalid", f"{path.name}: {name} has shape {header[name].shape}, not one dimension")
        arrays[name] = np.array(map_tensor(path, header[name]))
    return arrays


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file whole or not at all: temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        settle(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(text, encoding="utf-8")
        settle(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def settle(temporary: Path, path: Path) -> None:
    """Push a finished file to the disk and give it its name; the bytes come before the name."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
