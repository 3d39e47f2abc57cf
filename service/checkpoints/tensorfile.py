"""Headers of safetensors files, read without torch and without reading the data. API and workers use this reader.

A file is 8 bytes (little endian: length of the header), the header (JSON: name -> dtype, shape, data_offsets), and the
data, to the last byte. Format: https://huggingface.co/docs/safetensors

The header is parsed here, member by member, instead of by `json.loads`: ten megabytes of nested brackets would become
hundreds of megabytes of objects, and the parser would hold the interpreter's lock all the while.
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

# A tensor takes about 100 bytes of header, and the largest models of the hub have fewer than 1,000 tensors in a file.
MAX_HEADER_BYTES = 10_000_000
# The shortest possible entries would fit 200,000 times into such a header; each costs about 500 bytes of memory.
MAX_TENSORS = 100_000
# How the files begin that only pretend to be safetensors: zip archives (torch.save) and bare pickles.
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
    """One tensor of a file. `dtype` as safetensors names it; `begin` and `end` count bytes from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path, *, max_bytes: int = MAX_HEADER_BYTES) -> dict[str, Tensor]:
    """The tensors of a file, checked against its size. The data are not read.

    UnusableError `unsafe-format` for a pickle in disguise, `too-large` for a header over `max_bytes` or with too many
    tensors, `truncated-file` for any other header that does not describe exactly the bytes that follow it.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = _length(file, path.name, size, max_bytes)
        raw = file.read(length)
    try:
        tensors = dict(_tensors(raw, 8 + length))
    except (ValueError, TypeError, KeyError) as error:
        raise UnusableError("truncated-file", f"{path.name} has a damaged header: {error}.") from error
    if len(tensors) > MAX_TENSORS:
        raise UnusableError("too-large", f"{path.name} has more than {MAX_TENSORS:,} tensors.")
    spans = sorted((tensor.begin, tensor.end) for tensor in tensors.values())
    edges = [(0, 8 + length), *spans]
    needed = edges[-1][1]
    if size < needed:
        raise UnusableError("truncated-file", f"{path.name} is cut off: it has {size} of {needed} bytes.")
    if any(end != begin for (_, end), (begin, _) in pairwise(edges)):
        raise UnusableError("truncated-file", f"{path.name} has a damaged header: tensors overlap or leave gaps.")
    if size > needed:
        raise UnusableError(
            "truncated-file", f"{path.name} is damaged: it has {size - needed} bytes that belong to no tensor."
        )
    return tensors


def header_length(path: Path) -> int:
    """Bytes of a file's header, which is not read. UnusableErrors of `read_header` for a length that cannot be."""
    with path.open("rb") as file:
        return _length(file, path.name, path.stat().st_size, MAX_HEADER_BYTES)


def _length(file: BinaryIO, name: str, size: int, max_bytes: int) -> int:
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if 2 <= length <= min(size - 8, max_bytes):
        return int(length)
    # Only now: a header of 640 bytes begins like a pickle.
    if start.startswith(_PICKLE_STARTS):
        raise UnusableError("unsafe-format", f"{name} is a pickle or zip file under a safetensors name.")
    if 2 <= length <= size - 8:
        raise UnusableError("too-large", f"{name} has a header of {length:,} bytes; at most {max_bytes:,} are read.")
    raise UnusableError("truncated-file", f"{name} ({size} bytes) ends within its header, or is no safetensors file.")


def _tensors(raw: bytes, start: int) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of each member. `start`: where the data begin in the file. ValueError, TypeError, KeyError."""
    seen = set()
    for name, entry in _members(raw):
        if name in seen:
            raise ValueError(f"{name[:100]!r} is there twice")
        seen.add(name)
        if len(seen) > MAX_TENSORS + 1:
            return  # the caller counts them, and refuses
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        bits = _BITS.get(dtype)
        if bits is None:
            raise ValueError(f"{name[:100]!r} has the unknown data type {str(dtype)[:20]!r}")
        if not isinstance(shape, list) or not all(_is_size(number) for number in (begin, end, *shape)):
            raise ValueError(f"shape or offsets of {name[:100]!r} are not lists of sizes")
        if (end - begin) * 8 != math.prod(shape) * bits:
            raise ValueError(f"{name[:100]!r} has offsets that do not fit its shape")
        yield name, Tensor(dtype, tuple(shape), start + begin, start + end)


def _members(raw: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Members of the header, less `__metadata__`, whose strings are checked and not kept."""
    opening = _OPENING.match(raw)
    if not opening:
        raise ValueError("it is no JSON object")
    at, more = opening.end(), raw[opening.end() : opening.end() + 1] != b"}"
    if not more:
        at += 1
    while more:
        key = _NAME.match(raw, at)
        if not key:
            raise ValueError(f"no name at byte {at}")
        name = json.loads(key[1].decode())
        value = (_METADATA if name == "__metadata__" else _ENTRY).match(raw, key.end())
        if not value:
            raise ValueError(f"{name[:100]!r} is not described as a tensor is")
        separator = _SEPARATOR.match(raw, value.end())
        if not separator:
            raise ValueError(f"it ends, or goes wrong, after {name[:100]!r}")
        at, more = separator.end(), separator[1] == b","
        if name != "__metadata__":
            yield name, json.loads(value[0].decode())
    if raw[at:].strip(b" \t\r\n"):
        raise ValueError("something follows its last brace")


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST
