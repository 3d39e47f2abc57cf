"""Reads the headers of GGUF files (versions 2 and 3) without torch and without reading the data.

A file consists of the magic, version and two counts; the metadata (key, type, value); a description of each tensor
(name, shape, type, offset); padding; and the data. Every length is checked against the file size and a limit before
it is used.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from featurewatch.service.checkpoints.faults import UnusableError
from featurewatch.service.checkpoints.sizes import Census, check_config

# Nearly all metadata belong to the tokenizer: 262,144 tokens and 500,000 merges (Gemma 3) take 15 MB.
MAX_HEADER_BYTES = 100_000_000
MAX_STRINGS = 1_000_000
# Files on the hub have about 60 keys of about 40 characters, and at most 2,000 tensors: experts are stacked.
MAX_KEYS = 2_000
MAX_TENSORS = 20_000
_MAX_KEY_BYTES = 1_024
_MAX_NAME_BYTES = 256  # llama.cpp allows 64
_MAX_TEXT_BYTES = 1_000_000  # a chat template
_KEPT_TEXT_BYTES = 256  # the architecture's name
_MAX_DIMENSIONS = 4
_MAX_ALIGNMENT = 1024 * 1024
_CHUNK_BYTES = 256 * 1024

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Tensor type -> elements and bytes per block.
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
    40: (64, 36), 41: (128, 18),
}  # fmt: skip


class GgufTensor(NamedTuple):
    """One tensor of a file: its shape, and its byte range [begin, end) from the start of the data."""

    shape: tuple[int, ...]
    begin: int
    end: int


class GgufHeader(NamedTuple):
    """A parsed header. `metadata` holds only the length of arrays and long strings."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


class OverBudgetError(Exception):
    """The header has more strings than the caller's budget."""


def check_gguf(path: Path, *, budget: int | None = None) -> GgufHeader:
    """Read a file's header and check it against the file's size and its tensors.

    Raises UnusableError `truncated-file`, `too-large`, or `config-mismatch` if the metadata do not match the tensors;
    OverBudgetError if the metadata have more than `budget` strings (tokens and merges).
    """
    header = read_header(path, budget)
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise UnusableError("truncated-file", f"{path.name} is corrupt: general.architecture is missing.")
    if not header.tensors:
        raise UnusableError("weights-missing", f"{path.name} contains no tensors.")
    census = Census()
    for name, tensor in header.tensors.items():
        census.add(name, tensor.shape)
    prefix = f"{architecture}."
    config = {key.removeprefix(prefix): value for key, value in header.metadata.items() if key.startswith(prefix)}
    check_config(config, census, path.name)
    return header


def layer_count(header: GgufHeader) -> int | None:
    """Number of layers of the model; None if the metadata do not give it."""
    count = header.metadata.get(f"{header.metadata.get('general.architecture')}.block_count")
    return count if type(count) is int else None


def read_header(path: Path, budget: int | None = None) -> GgufHeader:
    """Read the metadata and tensors of a file. Raises UnusableError `truncated-file` or `too-large`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            return _Reader(file, size, budget).header()
        except (ValueError, struct.error) as error:
            raise UnusableError("truncated-file", f"{path.name} is corrupt: {error}.") from error
        except OverflowError as error:
            raise UnusableError("too-large", f"{path.name}: {error}.") from error


class _Reader:
    """Reads the header in order. Raises ValueError for invalid data, OverflowError over a limit."""

    def __init__(self, file: BinaryIO, size: int, budget: int | None) -> None:
        self.file, self.size, self.strings, self.budget = file, size, 0, budget
        self.chunk, self.at, self.before = b"", 0, 0
        """The current chunk, the offset in it, and the number of bytes of the file before it."""

    @property
    def position(self) -> int:
        return self.before + self.at

    def header(self) -> GgufHeader:
        if self.take(4) != b"GGUF":
            raise ValueError("it is not a GGUF file")
        version = self.number("I")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            kind = "big-endian" if swapped in (2, 3) else f"GGUF version {version}"
            raise ValueError(f"it is {kind}; only little-endian versions 2 and 3 are supported")
        tensors, keys = self.number("Q"), self.number("Q")
        # A description takes at least 24 bytes and a key 13, so counts that exceed the file are false.
        self.limit(tensors, MAX_TENSORS, 24, "tensors")
        self.limit(keys, MAX_KEYS, 13, "metadata keys")
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self.text(_MAX_KEY_BYTES, "a metadata key")
            if key in metadata:
                raise ValueError(f"metadata key {key[:100]!r} is duplicated")
            metadata[key] = self.value(key)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1) or alignment > _MAX_ALIGNMENT:
            raise ValueError(f"general.alignment is {alignment!r}; it must be a power of two")
        described: dict[str, GgufTensor] = {}
        for _ in range(tensors):
            name = self.text(_MAX_NAME_BYTES, "a tensor's name")
            if name in described:
                raise ValueError(f"tensor {name!r} is duplicated")
            described[name] = self.tensor(name, alignment)
        self.check_spans(described, alignment)
        return GgufHeader(metadata, described)

    def value(self, key: str) -> Any:
        kind = self.number("I")
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            raw = self.take(self.length(_MAX_TEXT_BYTES, f"{key[:100]!r}"))
            return raw.decode("utf-8", "replace") if len(raw) <= _KEPT_TEXT_BYTES else _Length(len(raw))
        if kind != _ARRAY:
            raise ValueError(f"{key[:100]!r} has unknown type {kind}")
        item, count = self.number("I"), self.number("Q")
        if item in _SCALARS:
            width = struct.calcsize(f"<{_SCALARS[item]}")
            self.limit(count, MAX_HEADER_BYTES // width, width, f"items of {key[:100]!r}")
            self.skip(count * width)
        elif item == _STRING:
            self.strings += count
            self.limit(self.strings, MAX_STRINGS, 8, "strings")
            if self.budget is not None and self.strings > self.budget:
                raise OverBudgetError
            self.skip_strings(count, key)
        else:
            kind_of_item = "arrays" if item == _ARRAY else f"unknown type {item}"
            raise ValueError(f"{key[:100]!r} is an array of {kind_of_item}")
        return _Length(count)

    def tensor(self, name: str, alignment: int) -> GgufTensor:
        dimensions = self.number("I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise ValueError(f"tensor {name!r} has {dimensions} dimensions; 1 to {_MAX_DIMENSIONS} are allowed")
        shape = tuple(self.number("Q") for _ in range(dimensions))
        kind, begin = self.number("I"), self.number("Q")
        if kind not in _BLOCKS:
            raise ValueError(f"tensor {name!r} has unknown type {kind}")
        elements, (block, block_bytes) = math.prod(shape), _BLOCKS[kind]
        if not elements or shape[0] % block:
            raise ValueError(f"tensor {name!r} has shape {list(shape)}, which is invalid for its type")
        if begin % alignment:
            raise ValueError(f"tensor {name!r} starts at byte {begin}, which is not aligned to {alignment} bytes")
        end = begin + elements // block * block_bytes
        if end > self.size:
            raise ValueError(f"tensor {name!r} extends past the end of the file")
        return GgufTensor(shape, begin, end)

    def check_spans(self, tensors: dict[str, GgufTensor], alignment: int) -> None:
        start = math.ceil(self.position / alignment) * alignment
        last = 0
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
            if tensor.begin < last:
                raise ValueError(f"tensor {name!r} overlaps another tensor")
            last = tensor.end
        if start + last > self.size:
            raise ValueError(f"it is truncated: {self.size} of {start + last} bytes")

    def text(self, most: int, what: str) -> str:
        raw = self.take(self.length(most, what))
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = ""
        if not text:
            raise ValueError(f"{what} is empty or not valid UTF-8")
        return text

    def length(self, most: int, what: str) -> int:
        length = self.number("Q")
        self.limit(length, most, 1, f"bytes of {what}")
        return length

    def limit(self, count: int, most: int, width: int, what: str) -> None:
        """Check that `count` items of at least `width` bytes fit in the rest of the file and do not exceed `most`."""
        if count * width > self.size - self.position:
            raise ValueError(f"it declares {count:,} {what} but is too short to hold them")
        if count > most:
            raise OverflowError(f"it has {count:,} {what}; the limit is {most:,}")

    def number(self, kind: str) -> Any:
        unpacker = _UNPACKERS[kind]
        return unpacker.unpack(self.take(unpacker.size))[0]

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.chunk):
            self.fill(count)
        begin = self.at
        self.at += count
        return self.chunk[begin : self.at]

    def fill(self, count: int) -> None:
        """Read until the chunk holds at least `count` more bytes."""
        rest = self.chunk[self.at :]
        self.before += self.at
        if self.before + count > MAX_HEADER_BYTES:
            raise OverflowError(f"its header is longer than {MAX_HEADER_BYTES:,} bytes")
        self.chunk, self.at = rest + self.file.read(max(count, _CHUNK_BYTES)), 0
        if len(self.chunk) < count:
            raise ValueError(f"it is truncated in its header, at byte {self.before + len(self.chunk)}")

    def skip(self, count: int) -> None:
        while count:
            step = min(count, _CHUNK_BYTES)
            self.take(step)
            count -= step

    def skip_strings(self, count: int, key: str) -> None:
        unpack = _UNPACKERS["Q"].unpack_from
        while count:
            # Strings that lie entirely in the chunk, without a function call for each.
            chunk, at, most = self.chunk, self.at, len(self.chunk) - 8
            while count and at <= most and (end := at + 8 + unpack(chunk, at)[0]) <= most + 8:
                at, count = end, count - 1
            self.at = at
            if count:
                self.take(self.length(_MAX_TEXT_BYTES, f"a string in {key[:100]!r}"))
                count -= 1


class _Length(int):
    """The length of a value that was dropped. A separate type, so that it is not taken for a config number."""


_UNPACKERS: dict[str, struct.Struct] = {kind: struct.Struct(f"<{kind}") for kind in _SCALARS.values()}
