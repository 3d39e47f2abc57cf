"""GGUF headers: whole ones are read; anything else is a clear error, at once and with little memory."""

import struct
from pathlib import Path

import pytest

from featurewatch.service.checkpoints import weights
from featurewatch.service.checkpoints.faults import UnusableError
from featurewatch.service.checkpoints.gguf import GgufTensor, check_gguf
from featurewatch.workers.activations.models.gguf import convert_gguf
from featurewatch.workers.errors import RunError
from tests.unit.checkpoints.raw import (
    ARCHITECTURE,
    ARRAY,
    F32,
    KEYS,
    STRING,
    TENSORS,
    U32,
    U64,
    array,
    gguf_header,
    memory_below,
    text,
    uint,
    write_gguf,
)

HUGE = struct.pack("<Q", 2**63 - 1)
EMBEDDING, *LAYERS = TENSORS


def keys(*more: tuple[bytes, int, bytes]) -> bytes:
    return gguf_header((*KEYS, *more))


def tensors(*more: tuple[bytes, tuple[int, ...], int, int]) -> bytes:
    return gguf_header(tensors=(*TENSORS, *more))


def without(*names: bytes) -> bytes:
    return gguf_header([key for key in KEYS if key[0] not in names])


COUNTS = 24  # bytes before the first key
MALFORMED = {
    "empty": (b"", "truncated-file", "truncated"),
    "another format": (gguf_header(magic=b"GGML"), "truncated-file", "not a GGUF file"),
    "a zip file": (gguf_header(magic=b"PK\x03\x04"), "truncated-file", "not a GGUF file"),
    "ends in the version": (gguf_header()[:6], "truncated-file", "truncated"),
    "ends in the counts": (gguf_header()[:20], "truncated-file", "truncated"),
    "ends in a key": (gguf_header()[: COUNTS + 15], "truncated-file", "too short"),
    "ends in a value": (gguf_header()[: COUNTS + 8 + 20 + 4 + 9], "truncated-file", "truncated|too short"),
    "ends in the tokens": (gguf_header(tensors=())[:-50], "truncated-file", "truncated|too short"),
    "ends in the tensors": (gguf_header()[:-9], "truncated-file", "truncated|past the end"),
    "version 1": (gguf_header(version=1), "truncated-file", "version 1"),
    "version 4": (gguf_header(version=4), "truncated-file", "version 4"),
    "big-endian": (gguf_header(version=3 << 24), "truncated-file", "big-endian"),
    "2^60 tensors": (gguf_header(counts=(2**60, 4)), "truncated-file", "tensors"),
    "2^60 keys": (gguf_header(counts=(3, 2**60)), "truncated-file", "metadata keys"),
    "2^64 - 1 keys": (gguf_header(counts=(3, 2**64 - 1)), "truncated-file", "metadata keys"),
    "fewer keys than are there": (gguf_header(counts=(3, 2)), "truncated-file", "corrupt"),
    "a key of 2^63 - 1 bytes": (gguf_header()[:COUNTS] + HUGE, "truncated-file", "bytes of a metadata key"),
    "an empty key": (keys((b"", U32, b"1234")), "truncated-file", "empty"),
    "a key that is not UTF-8": (keys((b"\xff\xfe", U32, b"1234")), "truncated-file", "UTF-8"),
    "a key twice": (keys(uint("llama.block_count", 2)), "truncated-file", "llama.block_count' is duplicated"),
    "a text of 2^63 - 1 bytes": (keys((b"general.name", STRING, HUGE)), "truncated-file", "general.name"),
    "an unknown type": (keys((b"a", 13, b"1234")), "truncated-file", "unknown type 13"),
    "2^60 numbers": (keys((b"a", ARRAY, array(U64, 2**60, b""))), "truncated-file", "items of 'a'"),
    "2^60 texts": (keys((b"a", ARRAY, array(STRING, 2**60, b""))), "truncated-file", "strings"),
    "a text of 2^63 - 1 bytes in an array": (keys((b"a", ARRAY, array(STRING, 1, HUGE))), "truncated-file", "'a'"),
    "an array of arrays": (
        keys((b"a", ARRAY, array(ARRAY, 1, array(ARRAY, 1, array(U32, 1, b"1234"))))),
        "truncated-file",
        "array of arrays",
    ),
    "an array of an unknown type": (keys((b"a", ARRAY, array(99, 1, b"1234"))), "truncated-file", "unknown type 99"),
    "alignment of 0": (keys(uint("general.alignment", 0)), "truncated-file", "alignment"),
    "alignment of 24": (keys(uint("general.alignment", 24)), "truncated-file", "alignment"),
    "alignment of 2^31": (keys(uint("general.alignment", 2**31)), "truncated-file", "alignment"),
    "alignment as a text": (keys((b"general.alignment", STRING, text(b"32"))), "truncated-file", "alignment"),
    "a tensor beyond the end": (tensors((b"x", (8, 8), F32, 2**40)), "truncated-file", "past the end of the file"),
    "an offset near 2^64": (tensors((b"x", (8, 8), F32, 2**64 - 32)), "truncated-file", "past the end of the file"),
    "an offset that is not aligned": (tensors((b"x", (8,), F32, 1001)), "truncated-file", "aligned"),
    "tensors that overlap": (tensors((b"x", (8, 8), F32, 512)), "truncated-file", "overlaps"),
    "dimensions whose product is over 2^64": (
        tensors((b"x", (2**40, 2**40), F32, 0)),
        "truncated-file",
        "past the end",
    ),
    "a dimension of 0": (tensors((b"x", (8, 0), F32, 1024)), "truncated-file", r"\[8, 0\]"),
    "no dimensions": (tensors((b"x", (), F32, 1024)), "truncated-file", "0 dimensions"),
    "2^32 - 1 dimensions": (
        gguf_header(counts=(4, 4)) + text(b"x") + struct.pack("<I", 2**32 - 1),
        "truncated-file",
        "4294967295 dimensions",
    ),
    "rows that its type cannot have": (tensors((b"x", (8, 8), 2, 1024)), "truncated-file", r"\[8, 8\]"),
    "a tensor of an unknown type": (tensors((b"x", (8,), 4, 1024)), "truncated-file", "unknown type 4"),
    "a tensor twice": (tensors(EMBEDDING), "truncated-file", "token_embd.weight' is duplicated"),
    "a name that is not UTF-8": (tensors((b"\xff", (8,), F32, 1024)), "truncated-file", "UTF-8"),
    "a name of 257 bytes": (tensors((b"x" * 257, (8,), F32, 1024)), "too-large", "257 bytes"),
    "no architecture": (without(b"general.architecture"), "truncated-file", "general.architecture"),
    "an architecture that is a number": (
        gguf_header((uint("general.architecture", 1), *KEYS[1:])),
        "truncated-file",
        "general.architecture",
    ),
    "no tensors": (gguf_header(tensors=()), "weights-missing", "no tensors"),
    "two million layers": (
        gguf_header((ARCHITECTURE, uint("llama.block_count", 2_000_000))),
        "config-mismatch",
        "2000000 layers",
    ),
    "a width of 10^9": (
        gguf_header((*KEYS[:2], uint("llama.embedding_length", 10**9))),
        "config-mismatch",
        "embedding_length is 1000000000",
    ),
    "10^9 heads": (keys(uint("llama.attention.head_count", 10**9)), "config-mismatch", "head_count is 1000000000"),
}


def write_malformed(file: Path, name: str) -> Path:
    """One of MALFORMED. Those that are cut off end with their header; behind the others are data."""
    header = MALFORMED[name][0]
    if name.startswith(("empty", "ends in")):
        file.write_bytes(header)
        return file
    return write_gguf(file, header, data=4096)


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files(tmp_path: Path, name: str) -> None:
    _, code, says = MALFORMED[name]
    file = write_malformed(tmp_path / "model.gguf", name)
    with memory_below(2_000_000), pytest.raises(UnusableError, match=says) as caught:
        check_gguf(file)
    assert caught.value.code == code
    assert "model.gguf" in caught.value.detail
    with pytest.raises(RunError) as failed:
        convert_gguf(file, tmp_path / "cache")
    assert (failed.value.code, failed.value.detail) == (code, caught.value.detail)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("version", [2, 3])
def test_a_whole_file(tmp_path: Path, version: int) -> None:
    header = check_gguf(write_gguf(tmp_path / "model.gguf", gguf_header(version=version)))
    assert header.metadata["general.architecture"] == "llama"
    assert header.metadata["tokenizer.ggml.tokens"] == 3
    assert header.tensors["blk.1.attn_q.weight"] == GgufTensor((8, 8), 768, 1024)


@pytest.mark.parametrize("missing", [1, 500, 1024])
def test_data_that_are_cut_off(tmp_path: Path, missing: int) -> None:
    with pytest.raises(UnusableError, match=r"truncated|past the end") as caught:
        check_gguf(write_gguf(tmp_path / "model.gguf", data=1024 - missing))
    assert caught.value.code == "truncated-file"


def test_texts_longer_than_what_is_read_at_a_time(tmp_path: Path) -> None:
    """Tokens before, in and after a text of half a megabyte, which crosses the borders of chunks."""
    tokens = [b"a" * number for number in range(300)] * 10 + [b"b" * 500_000] + [b"c"] * 50_000
    more = (b"tokens", ARRAY, array(STRING, len(tokens), b"".join(map(text, tokens))))
    header = check_gguf(write_gguf(tmp_path / "model.gguf", keys(more, uint("after", 7))))
    assert (header.metadata["tokens"], header.metadata["after"]) == (len(tokens), 7)


def test_more_texts_than_any_tokenizer_has(tmp_path: Path) -> None:
    more = (b"a", ARRAY, array(STRING, 1_000_001, bytes(8 * 1_000_001)))
    with pytest.raises(UnusableError, match=r"1,000,00[14] strings") as caught:
        check_gguf(write_gguf(tmp_path / "model.gguf", keys(more)))
    assert caught.value.code == "too-large"


def test_a_request_leaves_a_large_vocabulary_to_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = weights.REQUEST_TEXTS + 1
    file = write_gguf(tmp_path / "model.gguf", keys((b"texts", ARRAY, array(STRING, many, bytes(8 * many)))))
    weights.check_model(file, ["resid_post.99"])
    monkeypatch.setattr(weights, "REQUEST_TEXTS", 2 * many)
    with pytest.raises(UnusableError, match=r"resid_post\.99"):
        weights.check_model(file, ["resid_post.99"])
