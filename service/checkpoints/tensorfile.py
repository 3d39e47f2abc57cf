"""Reads the headers of safetensors files, without torch and without reading the data, for the API and the workers.

A file consists of 8 bytes (the header's length, little-endian), the header (JSON: name -> dtype, shape, data_offsets)
and the data, which ends exactly at the end of the file. Format: https://huggingface.co/docs/safetensors

The header is parsed member by member instead of with `json.loads`, which would turn ten megabytes of nested brackets
into hundreds of megabytes of objects while it holds the interpreter's lock.
"""

import json
import math
import re
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from featurewatch.service.checkpoints.faults import UnusableError

# A tensor takes about 100 bytes of header, and the largest models on the hub have fewer than 1,000 tensors per file.
MAX_HEADER_BYTES = 10_000_000
# 200,000 of the shortest entries would fit in such a header; each takes about 500 bytes of memory.
MAX_TENSORS = 100_000
# First bytes of files that only pretend to be safetensors: zip archives (torch.save) and bare pickles.
_PICKLE_STARTS = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_LARGEST = 2**63 - 1

# Possessive quantifiers throughout: no input makes them backtrack.
_SPACE = rb"[ \t\r\n]*+"
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_OPENING = re.compile(_SPACE + rb"\{" + _SPACE)
_NAME = re.compile(_SPACE + rb'("(?:[^"\\]|\\.){0,1000}+")' + _SPACE + rb":" + _SPACE, re.DOTALL)
_ENTRY = re.compile(rb"\{[^{}]{0,1000}+\}")
_METADATA = re.compile(
    rb"null|\{(?:" + _SPACE + _STRING + _SPACE + rb":" + _SPACE + _STRING + _SPACE + rb",?+)*+" + _SPACE + rb"\}",
    re.DOTALL,
)
_SEPARATOR = re.compile(_SPACE + rb"([,}])")


class Tensor(NamedTuple):
    """One tensor of a file: its safetensors dtype, its shape, and its byte range [begin, end) in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path, *, max_bytes: int = MAX_HEADER_BYTES) -> dict[str, Tensor]:
    """Read the tensors of a file, checked against its size. The data are not read.

    Raises UnusableError `unsafe-format` for a renamed pickle, `too-large` for a header over `max_bytes` or with too
    many tensors, and `truncated-file` for any other header that does not describe exactly the bytes that follow.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = _length(file, path.name, size, max_bytes)
        raw = file.read(length)
    try:
        tensors = dict(_tensors(raw, 8 + length))
    except (ValueError, TypeError, KeyError) as error:
        raise UnusableError("truncated-file", f"{path.name} has an invalid header: {error}.") from error
    if len(tensors) > MAX_TENSORS:
        raise UnusableError("too-large", f"{path.name} has more than {MAX_TENSORS:,} tensors.")
    spans = sorted((tensor.begin, tensor.end) for tensor in tensors.values())
    edges = [(0, 8 + length), *spans]
    needed = edges[-1][1]
    if size < needed:
        raise UnusableError("truncated-file", f"{path.name} is truncated: {size} of {needed} bytes.")
    if any(end != begin for (_, end), (begin, _) in pairwise(edges)):
        raise UnusableError("truncated-file", f"{path.name} has an invalid header: tensors overlap or leave gaps.")
    if size > needed:
        raise UnusableError(
            "truncated-file", f"{path.name} has extra data after its last tensor ({size - needed} bytes)."
        )
    return tensors


def header_length(path: Path) -> int:
    """Length of a file's header in bytes, without reading it. Raises as `read_header` for an invalid length."""
    with path.open("rb") as file:
        return _length(file, path.name, path.stat().st_size, MAX_HEADER_BYTES)


def _length(file: BinaryIO, name: str, size: int, max_bytes: int) -> int:
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if 2 <= length <= min(size - 8, max_bytes):
        return int(length)
    # Checked last, because the length of a 640-byte header looks like the start of a pickle.
    if start.startswith(_PICKLE_STARTS):
        raise UnusableError("unsafe-format", f"{name} is a pickle or zip file, not safetensors.")
    if 2 <= length <= size - 8:
        raise UnusableError("too-large", f"{name} has a header of {length:,} bytes; the limit is {max_bytes:,}.")
    raise UnusableError(
        "truncated-file", f"{name} ({size} bytes) is truncated in its header or is not a safetensors file."
    )


def _tensors(raw: bytes, start: int) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of each member; the data start at byte `start`. Raises ValueError, TypeError, KeyError."""
    seen = set()
    for name, entry in _members(raw):
        if name in seen:
            raise ValueError(f"{name[:100]!r} is duplicated")
        seen.add(name)
        if len(seen) > MAX_TENSORS + 1:
            return  # the caller checks the count
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        bits = _BITS.get(dtype)
        if bits is None:
            raise ValueError(f"{name[:100]!r} has unknown data type {str(dtype)[:20]!r}")
        if not isinstance(shape, list) or not all(_is_size(number) for number in (begin, end, *shape)):
            raise ValueError(f"the shape and offsets of {name[:100]!r} must be lists of sizes")
        if (end - begin) * 8 != math.prod(shape) * bits:
            raise ValueError(f"the offsets of {name[:100]!r} do not match its shape")
        yield name, Tensor(dtype, tuple(shape), start + begin, start + end)


def _members(raw: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Members of the header except `__metadata__`, which is checked and dropped."""
    opening = _OPENING.match(raw)
    if not opening:
        raise ValueError("it is not a JSON object")
    at, more = opening.end(), raw[opening.end() : opening.end() + 1] != b"}"
    if not more:
        at += 1
    while more:
        key = _NAME.match(raw, at)
        if not key:
            raise ValueError(f"expected a name at byte {at}")
        name = json.loads(key[1].decode())
        value = (_METADATA if name == "__metadata__" else _ENTRY).match(raw, key.end())
        if not value:
            raise ValueError(f"{name[:100]!r} is malformed")
        separator = _SEPARATOR.match(raw, value.end())
        if not separator:
            raise ValueError(f"invalid JSON after {name[:100]!r}")
        at, more = separator.end(), separator[1] == b","
        if name != "__metadata__":
            yield name, json.loads(value[0].decode())
    if raw[at:].strip(b" \t\r\n"):
        raise ValueError("unexpected data after the closing brace")


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST
