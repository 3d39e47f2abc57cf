"""Headers of safetensors files: what the format allows is read, and nothing that does not describe the file exactly."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from featurewatch.service.checkpoints.faults import UnusableError
from featurewatch.service.checkpoints.tensorfile import MAX_HEADER_BYTES, Tensor, header_length, read_header
from featurewatch.workers.activations.tensorfiles import read_header as read_in_worker
from featurewatch.workers.errors import RunError
from tests.unit.checkpoints.raw import entry, memory_below, write_safetensors


def refused(file: Path, code: str, *words: str) -> None:
    with pytest.raises(UnusableError) as caught:
        read_header(file)
    assert caught.value.code == code, caught.value.detail
    assert file.name in caught.value.detail
    for word in words:
        assert word in caught.value.detail
    with pytest.raises(RunError) as failed:
        read_in_worker(file)
    assert (failed.value.code, failed.value.detail) == (caught.value.code, caught.value.detail)


def test_what_the_library_writes(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    arrays = {
        "scalar": np.array(3, np.float32),
        "empty": np.zeros((0, 4), np.int64),
        'a "quoted" \\ name, {with} [brackets]: ü ☃': np.arange(6, dtype=np.int8).reshape(2, 3),
        "half": np.ones((3, 5), np.float16),
    }
    save_file(arrays, file, metadata={"training": json.dumps({"nested": ["{", "}", '"']}), "empty": ""})
    header = read_header(file)
    raw = file.read_bytes()
    assert set(header) == set(arrays)
    for name, array in arrays.items():
        tensor = header[name]
        assert (tensor.shape, raw[tensor.begin : tensor.end]) == (array.shape, array.tobytes())
    assert read_in_worker(file) == header


@pytest.mark.parametrize("columns", range(1, 400, 7))
def test_no_length_of_a_header_is_taken_for_a_pickle(tmp_path: Path, columns: int) -> None:
    """A header of 640 bytes begins as pickles of version 2 do."""
    file = tmp_path / "model.safetensors"
    save_file({f"{'x' * columns}{number}": np.zeros(1, np.float32) for number in range(8)}, file)
    assert len(read_header(file)) == 8


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"{}", 0),
        (b" \n{ } \t", 0),
        (b'{"__metadata__":{}}', 0),
        (b'{"__metadata__":null,"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}', 1),
        (b'{ "a" : { "dtype" : "F4", "shape" : [ 4 ], "data_offsets" : [ 0, 2 ] } }   ', 2),
        (b'{"b":{"data_offsets":[1,2],"shape":[],"dtype":"I8"},"a":{"dtype":"I8","shape":[],"data_offsets":[0,1]}}', 2),
    ],
)  # fmt: skip
def test_what_the_format_allows(tmp_path: Path, header: bytes, data: int) -> None:
    read_header(write_safetensors(tmp_path / "a.safetensors", header, data))


GOOD = {"a": entry([2, 2], 0, 16)}
DAMAGED: dict[str, tuple[Any, int, str]] = {
    "nothing": (b"  ", 0, "JSON object"),
    "a list": (b"[]", 0, "JSON object"),
    "no JSON": (b"{a: 1}", 0, "expected a name"),
    "no end": (b'{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}', 16, "after 'a'"),
    "a comma too many": (b'{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},}', 16, "expected a name"),
    "more than one object": (
        b'{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}{}',
        16,
        "after the closing brace",
    ),
    "a name twice": (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
        2,
        "duplicated",
    ),
    "no UTF-8": (b'{"\xff":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}', 16, "utf-8"),
    "a number for a tensor": ({"a": 1}, 0, "malformed"),
    "nested objects": ({"a": {"dtype": {"x": 1}, "shape": [], "data_offsets": [0, 1]}}, 1, "malformed"),
    "metadata that are no texts": ({"__metadata__": {"a": [[]]}}, 0, "malformed"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [1]}}, 4, "data_offsets"),
    "three offsets": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, 4, "unpack"),
    "an unknown type": ({"a": entry([4], 0, 16, "F31")}, 16, "F31"),
    "a type that is a list": ({"a": {"dtype": [], "shape": [1], "data_offsets": [0, 4]}}, 4, "unhashable"),
    "a shape that is a text": ({"a": {"dtype": "F32", "shape": "11", "data_offsets": [0, 4]}}, 4, "lists"),
    "a negative size": ({"a": entry([-2, -2], 0, 16)}, 16, "lists"),
    "a size that is true": ({"a": entry([True, 4], 0, 16)}, 16, "lists"),
    "a size of 2^64": ({"a": entry([2**64, 0], 0, 0)}, 0, "lists"),
    "a product over 2^64": ({"a": entry([2**62, 2**62], 0, 16)}, 16, "match its shape"),
    "offsets in the wrong order": ({"a": entry([2, 2], 16, 0)}, 16, "match its shape"),
    "offsets of another shape": ({"a": entry([2, 2], 0, 12)}, 12, "match its shape"),
    "half a byte": ({"a": entry([3], 0, 1, "F4")}, 1, "match its shape"),
    "a gap": (GOOD | {"b": entry([1], 20, 24)}, 24, "gaps"),
    "a gap at the start": ({"a": entry([1], 4, 8)}, 8, "gaps"),
    "an overlap": (GOOD | {"b": entry([2], 8, 16)}, 16, "overlap"),
    "twice the same bytes": (GOOD | {"b": entry([2, 2], 0, 16)}, 16, "overlap"),
    "too few bytes": (GOOD, 15, "truncated"),
    "too many bytes": (GOOD, 17, "1 bytes"),
    "a tensor of an exabyte": ({"a": entry([2**58], 0, 2**60)}, 16, "truncated"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_headers(tmp_path: Path, name: str) -> None:
    header, data, says = DAMAGED[name]
    file = write_safetensors(tmp_path / "a.safetensors", header, data)
    refused(file, "truncated-file", says)
    with pytest.raises(SafetensorError), safe_open(file, "np") as opened:  # the library does not read it either
        for key in opened.keys():  # noqa: SIM118
            opened.get_tensor(key)


def test_lengths_that_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    for length in (0, 1, 1000, 2**63 - 1, 2**64 - 1):
        refused(write_safetensors(file, GOOD, 16, length=length), "truncated-file")
    file.write_bytes(b"1234567")
    refused(file, "truncated-file", "7 bytes")


def test_a_header_of_81_megabytes_is_not_read(tmp_path: Path) -> None:
    file = write_safetensors(tmp_path / "a.safetensors", b"{" + b" " * 81_000_000)
    with memory_below(1_000_000):
        refused(file, "too-large", "81,000,001", f"{MAX_HEADER_BYTES:,}")
        with pytest.raises(UnusableError, match="81,000,001"):
            header_length(file)


@pytest.mark.parametrize(
    ("begin", "fill"),
    [
        (b'{"a":', b"[],"),
        (b'{"a":', b"["),
        (b'{"a":', b'{"a":'),
        (b'{"__metadata__":{"a":', b"{},"),
        (b'{"a":{"dtype":"F32","shape":[', b"1,"),
        (b'{"', b"\\u00e9"),
        (b'{"__metadata__":{"a":"', b"\\\\"),
    ],
)
def test_headers_that_would_fill_the_memory(tmp_path: Path, begin: bytes, fill: bytes) -> None:
    """Ten megabytes of brackets would become some hundred megabytes of objects."""
    header = begin + fill * ((MAX_HEADER_BYTES - len(begin)) // len(fill))
    file = write_safetensors(tmp_path / "a.safetensors", header)
    with memory_below(MAX_HEADER_BYTES + 1_000_000), pytest.raises(UnusableError, match="invalid header"):
        read_header(file)


def test_as_many_tensors_as_fit(tmp_path: Path) -> None:
    members = (b'"%06x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % number for number in range(170_000))
    file = write_safetensors(tmp_path / "a.safetensors", b"{" + b",".join(members) + b"}")
    with pytest.raises(UnusableError, match="100,000 tensors") as caught:
        read_header(file)
    assert caught.value.code == "too-large"


def test_tensors_are_counted_from_the_start_of_the_file(tmp_path: Path) -> None:
    file = write_safetensors(tmp_path / "a.safetensors", GOOD, 16)
    length = header_length(file)
    assert read_header(file) == {"a": Tensor("F32", (2, 2), 8 + length, 24 + length)}
    with pytest.raises(UnusableError, match="the limit is 20"):
        read_header(file, max_bytes=20)
