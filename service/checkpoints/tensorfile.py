"""Headers of safetensors files, read without torch and without reading the data.

A file is 8 bytes (little endian: length of the header), the header (JSON: name -> dtype, shape, data_offsets), and the
data, to the last byte. Format: https://huggingface.co/docs/safetensors
"""

import json
import struct
from pathlib import Path
from typing import NamedTuple

from service.checkpoints.faults import UnusableError

MAX_HEADER_BYTES = 100_000_000
# How the files begin that only pretend to be safetensors: zip archives (torch.save) and bare pickles.
_PICKLE_STARTS = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class Tensor(NamedTuple):
    """One tensor of a file: type as safetensors names it, shape, and its first byte in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, its size checked against them. UnusableError `unsafe-format`, `truncated-file`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            if start.startswith(_PICKLE_STARTS):
                raise UnusableError("unsafe-format", f"{path.name} is a pickle or zip file under a safetensors name.")
            raise UnusableError(
                "truncated-file", f"{path.name} ({size} bytes) ends within its header, or is no safetensors file."
            )
        raw = file.read(length)
    try:
        fields = json.loads(raw)
        fields.pop("__metadata__", None)
        spans = {name: _span(entry["data_offsets"]) for name, entry in fields.items()}
        tensors = {
            name: Tensor(str(entry["dtype"]), _shape(entry["shape"]), 8 + length + spans[name][0])
            for name, entry in fields.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UnusableError("truncated-file", f"{path.name} has a damaged header: {error}.") from error
    needed = 8 + length + max((end for _, end in spans.values()), default=0)
    if size < needed:
        raise UnusableError("truncated-file", f"{path.name} is cut off: it has {size} of {needed} bytes.")
    if size > needed:
        raise UnusableError(
            "truncated-file", f"{path.name} is damaged: it has {size - needed} bytes that belong to no tensor."
        )
    return tensors


def _shape(value: list[int]) -> tuple[int, ...]:
    if not all(isinstance(number, int) and number >= 0 for number in value):
        raise ValueError("a shape is no list of sizes")
    return tuple(value)


def _span(offsets: list[int]) -> tuple[int, int]:
    begin, end = offsets
    if not (isinstance(begin, int) and isinstance(end, int) and 0 <= begin <= end):
        raise ValueError("offsets are out of order")
    return begin, end
