"""The sparse code and its examples, read from the artifact store without torch and without loading all of it."""

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from featurewatch.service.checkpoints.tensorfile import read_header
from featurewatch.service.features import queries
from featurewatch.service.features.schemas import Example
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.cache import SizedCache
from featurewatch.service.kit.digests import FileState
from featurewatch.service.kit.problems import NotFoundError
from featurewatch.service.models import Code, Family, Feature
from featurewatch.service.verdicts.arrays import positions_of

_CHUNK_BYTES = 4 * 1024 * 1024
_AROUND = 120
"""Characters of context on each side of an example."""
_DTYPES = {"I64": "<i8", "I32": "<i4", "F32": "<f4"}


def code_of(session: Session, family: Family, checkpoint: str | None) -> tuple[Code, str]:
    """The code of a checkpoint, by default the newest, with the checkpoint's name. 404 if there is none."""
    for code, name in queries.codes(session, family.id):
        if checkpoint is None or name == checkpoint:
            return code, name
    raise NotFoundError(f"{checkpoint or family.name} has no code yet.", code="no-code")


def stream_npz(path: Path, n_positions: int, n_features: int) -> Iterator[bytes]:
    """A CSR code in the format of `scipy.sparse.save_npz`, in chunks. Rows are positions, columns are features.

    `path` is the code artifact (`indptr`, `indices`, `values`). Not compressed: floats hardly shrink.
    """
    header = read_header(path)
    outlet = Outlet()
    with zipfile.ZipFile(outlet, "w", zipfile.ZIP_STORED) as archive:
        for name, value in (("format", np.array(b"csr")), ("shape", np.array([n_positions, n_features], np.int64))):
            buffer = io.BytesIO()
            np.save(buffer, value, allow_pickle=False)
            archive.writestr(f"{name}.npy", buffer.getvalue())
        for name, tensor_name in (("indptr", "indptr"), ("indices", "indices"), ("data", "values")):
            tensor = header[tensor_name]
            dtype = np.dtype(_DTYPES[tensor.dtype])
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member, path.open("rb") as source:
                described: dict[str, Any] = {"descr": dtype.str, "fortran_order": False, "shape": tensor.shape}
                np.lib.format.write_array_header_1_0(member, described)
                source.seek(tensor.begin)
                left = dtype.itemsize * int(np.prod(tensor.shape))
                while left:
                    block = source.read(min(left, _CHUNK_BYTES))
                    if not block:
                        raise OSError(f"{path.name} ended early")
                    left -= len(block)
                    member.write(block)
                    yield outlet.drain()
    yield outlet.drain()


class Outlet(io.RawIOBase):
    """A write-only file whose content is taken away in chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = bytearray()
        self.drained = 0

    def tell(self) -> int:
        return self.drained + len(self.buffer)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.buffer += data
        return len(data)

    def drain(self) -> bytes:
        """What was written since the last call."""
        chunk = bytes(self.buffer)
        self.drained += len(chunk)
        self.buffer.clear()
        return chunk


def examples(
    session: Session, artifacts: ArtifactStore, family: Family, feature: Feature, limit: int
) -> tuple[str, list[Example]]:
    """(checkpoint, top activating examples) of a feature, strongest first, from the newest code that has it."""
    for code, file, checkpoint in queries.example_files(session, family.id):
        columns = _columns(artifacts, code).columns_of([feature.number])
        if columns:
            return checkpoint, _examples(artifacts, family, file, columns, limit)[feature.number]
    raise NotFoundError(f"No stored code contains F{feature.number} yet.", code="no-code")


def examples_of(
    session: Session, artifacts: ArtifactStore, family: Family, numbers: Sequence[int], limit: int
) -> dict[int, list[Example]]:
    """Feature number -> top examples, for many features at once; empty if none are stored."""
    examples_by_number: dict[int, list[Example]] = {number: [] for number in numbers}
    wanted = set(numbers)
    for code, file, _ in queries.example_files(session, family.id):
        if not wanted:
            break
        try:
            here = _columns(artifacts, code).columns_of(list(wanted))
            examples_by_number |= _examples(artifacts, family, file, here, limit) if here else {}
        except (FileNotFoundError, NotFoundError):
            continue  # a report is useful without them
        wanted -= set(here)
    return examples_by_number


@dataclass(frozen=True)
class _Columns:
    """The features of a code and their columns."""

    numbers: NDArray[np.int32]
    """ascending"""
    columns: NDArray[np.int32]

    @property
    def nbytes(self) -> int:
        return self.numbers.nbytes + self.columns.nbytes

    def columns_of(self, numbers: Sequence[int]) -> dict[int, int]:
        """Feature number -> column, of the features that the code has."""
        positions = positions_of(self.numbers, numbers)
        known = np.flatnonzero(positions >= 0)
        columns = self.columns[positions[known]].tolist()
        return {numbers[index]: column for index, column in zip(known.tolist(), columns, strict=True)}


_COLUMNS: SizedCache[_Columns] = SizedCache(32 * 2**20)
"""A quarter of a megabyte for a code of 32,768 features. Features of another branch are looked up in many codes."""


def _columns(artifacts: ArtifactStore, code: str) -> _Columns:
    path = artifacts.path(code)

    def read() -> _Columns:
        numbers = _mapped(path)["feature_numbers"]
        order = np.argsort(numbers, kind="stable")  # a re-fit reorders them
        return _Columns(numbers[order].astype(np.int32), order.astype(np.int32))

    return _COLUMNS.get((path, FileState.of(path)), read)


def _examples(
    artifacts: ArtifactStore, family: Family, file: str, columns: dict[int, int], limit: int
) -> dict[int, list[Example]]:
    described = family.positions or {}
    if "artifact" not in described:
        raise NotFoundError(f"{family.name} has no positions yet. Its first checkpoint sets them.", code="no-code")
    tops, places = artifacts.path(file), artifacts.path(described["artifact"])
    texts = artifacts.path(described["documents"]) if described.get("documents") else None

    files = tuple((path, FileState.of(path)) for path in (tops, places, texts) if path)

    def of(column: int) -> list[Example]:
        key = (files, column, limit)
        return _TOP.get(key, lambda: _top(tops, places, texts, column, limit)).examples

    return {number: of(column) for number, column in columns.items()}


@dataclass(frozen=True)
class _Top:
    """The top examples of a feature in one code."""

    examples: list[Example]

    @property
    def nbytes(self) -> int:
        """Approximate memory use."""
        return 500 + 1500 * len(self.examples)


_TOP: SizedCache[_Top] = SizedCache(8 * 2**20)
"""Some 1,600 features: successive reports mention the same ones."""


def _top(tops: Path, places: Path, texts: Path | None, column: int, limit: int) -> _Top:
    examples, positions = _mapped(tops), _mapped(places)
    texts = texts if {"start", "end"} <= set(positions) else None
    top = examples["positions"][column]
    there = np.flatnonzero(top >= 0)[:limit]
    pairs = zip(top[there].tolist(), examples["values"][column][there].tolist(), strict=True)
    return _Top([_example(positions, texts, place, value) for place, value in pairs])


def _example(places: dict[str, np.ndarray], texts: Path | None, place: int, value: float) -> Example:
    """texts: the probe corpus, if the offsets of its tokens are known."""
    document = int(places["document"][place])
    before = token = after = None
    if texts and (text := document_text(texts, document)) is not None:
        start, end = (int(places[name][place]) for name in ("start", "end"))
        before, token, after = text[max(0, start - _AROUND) : start], text[start:end], text[end : end + _AROUND]
    return Example(
        document=document, position=place, text_before=before, token=token, text_after=after, activation=value
    )


def tensors(artifacts: ArtifactStore, name: str) -> dict[str, np.ndarray]:
    """The tensors of an artifact, memory-mapped. FileNotFoundError if it is no longer stored."""
    return _mapped(artifacts.path(name))


def document_text(path: Path, document: int) -> str | None:
    """The text of a document of the probe corpus, JSON lines of `{"id", "text"}`. None if there is no such document."""
    where = _line_offsets(path, FileState.of(path)).get(document)
    if where is None:
        return None
    with path.open("rb") as file:
        file.seek(where)
        text: str = json.loads(file.readline())["text"]
        return text


# Artifacts never change, but a damaged one may be restored under the same name: caches are keyed by the file's state.


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, memory-mapped."""
    return _tensors(path, FileState.of(path))


@lru_cache(maxsize=16)
def _tensors(path: Path, _state: FileState) -> dict[str, np.ndarray]:
    content = np.memmap(path, np.uint8, "r")
    return {
        name: np.ndarray(tensor.shape, _DTYPES[tensor.dtype], content, tensor.begin)
        for name, tensor in read_header(path).items()
        if tensor.dtype in _DTYPES
    }


@lru_cache(maxsize=8)
def _line_offsets(path: Path, _state: FileState) -> dict[int, int]:
    """Document id -> offset of its line."""
    offsets, at = {}, 0
    with path.open("rb") as file:
        for line in file:
            offsets[int(json.loads(line)["id"])] = at
            at += len(line)
    return offsets
