"""GGUF and safetensors files written byte by byte, so that they can be wrong in any way."""

import json
import struct
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

U32, STRING, ARRAY, U64 = 4, 8, 9, 10
F32 = 0

Key = tuple[bytes, int, bytes]
Description = tuple[bytes, Sequence[int], int, int]


def text(value: bytes) -> bytes:
    """A GGUF string."""
    return struct.pack("<Q", len(value)) + value


def uint(key: str, value: int) -> Key:
    """A key with a 32-bit number."""
    return key.encode(), U32, struct.pack("<I", value)


def array(kind: int, count: int, items: bytes) -> bytes:
    """The value of a key of type ARRAY."""
    return struct.pack("<IQ", kind, count) + items


ARCHITECTURE: Key = (b"general.architecture", STRING, text(b"llama"))
KEYS: tuple[Key, ...] = (
    ARCHITECTURE,
    uint("llama.block_count", 2),
    uint("llama.embedding_length", 8),
    (b"tokenizer.ggml.tokens", ARRAY, array(STRING, 3, text(b"a") + text(b"b") + text(b"c" * 300))),
)
TENSORS: tuple[Description, ...] = (
    (b"token_embd.weight", (8, 16), F32, 0),
    (b"blk.0.attn_q.weight", (8, 8), F32, 512),
    (b"blk.1.attn_q.weight", (8, 8), F32, 768),
)


def gguf_header(
    keys: Sequence[Key] = KEYS,
    tensors: Sequence[Description] = TENSORS,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """All that comes before the data, without padding. `counts`: of tensors and keys, where they should be wrong."""
    raw = magic + struct.pack("<IQQ", version, *(counts or (len(tensors), len(keys))))
    for key, kind, value in keys:
        raw += text(key) + struct.pack("<I", kind) + value
    for name, shape, kind, offset in tensors:
        raw += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return raw


def write_gguf(file: Path, header: bytes | None = None, *, data: int = 1024) -> Path:
    """A GGUF file with so many bytes of data; without a `header`, a whole one of two layers."""
    raw = gguf_header() if header is None else header
    file.write_bytes(raw + b"\0" * (-len(raw) % 32 + data))
    return file


def write_safetensors(file: Path, header: bytes | dict[str, Any], data: int = 0, *, length: int | None = None) -> Path:
    """A safetensors file with this header and so many bytes of data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(raw) if length is None else length) + raw)
        out.truncate(8 + len(raw) + data)
    return file


def entry(shape: Sequence[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    """One tensor in a safetensors header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    """The block's own objects take fewer bytes than this at any time."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit
