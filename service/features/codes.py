"""The sparse code and its examples, read from the artifact store without torch and without holding all of it."""

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
from featurewatch.service.verdicts.arrays import places_of

_CHUNK_BYTES = 4 * 1024 * 1024
_CONTEXT_CHARACTERS = 120
_DTYPES = {"I64": "<i8", "I32": "<i4", "F32": "<f4"}


def code_of(session: Session, family: Family, checkpoint: str | None) -> tuple[Code, str]:
    """The code of a checkpoint, or the newest one, with the checkpoint's name; 404 where there is none."""
    for code, name in queries.codes(session, family.id):
        if checkpoint is None or name == checkpoint:
            return code, name
    raise NotFoundError(f"There is no code of {checkpoint or family.name} (yet).", code="no-code")


def feature_numbers(artifacts: ArtifactStore, code: Code) -> np.ndarray:
    """Numbers of the features, in the order of the code's columns: int64 [columns]."""
    return tensors(artifacts, code.artifact)["feature_numbers"]


def stream_npz(path: Path, n_positions: int, n_features: int) -> Iterator[bytes]:
    """A CSR code as `scipy.sparse.save_npz` writes it, in pieces: rows are positions, columns features.

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
    """A file that can only be written on; what was written is taken away piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.held = bytearray()
        self.taken = 0

    def tell(self) -> int:
        return self.taken + len(self.held)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.held += data
        return len(data)

    def drain(self) -> bytes:
        piece = bytes(self.held)
        self.taken += len(piece)
        self.held.clear()
        return piece


def examples(
    session: Session, artifacts: ArtifactStore, family: Family, feature: Feature, limit: int
) -> tuple[str, list[Example]]:
    """(checkpoint, top activating examples) of a feature, strongest first, from the newest code that has it."""
    for code, kept, checkpoint in queries.example_files(session, family.id):
        columns = _held(artifacts, code).columns_of([feature.number])
        if columns:
            return checkpoint, _examples(artifacts, family, kept, columns, limit)[feature.number]
    raise NotFoundError(f"No code holds the feature F{feature.number} (yet).", code="no-code")


def examples_of(
    session: Session, artifacts: ArtifactStore, family: Family, numbers: Sequence[int], limit: int
) -> dict[int, list[Example]]:
    """Feature number -> its top examples, of many features at once; empty where nothing is kept of them (any more)."""
    found: dict[int, list[Example]] = {number: [] for number in numbers}
    wanted = set(numbers)
    for code, kept, _ in queries.example_files(session, family.id):
        if not wanted:
            break
        try:
            here = _held(artifacts, code).columns_of(list(wanted))
            found |= _examples(artifacts, family, kept, here, limit) if here else {}
        except (FileNotFoundError, NotFoundError):
            continue  # a report is worth having without them
        wanted -= set(here)
    return found


@dataclass(frozen=True)
class _Held:
    """Which features a code holds, and where."""

    numbers: NDArray[np.int32]
    """ascending"""
    columns: NDArray[np.int32]

    @property
    def nbytes(self) -> int:
        return self.numbers.nbytes + self.columns.nbytes

    def columns_of(self, numbers: Sequence[int]) -> dict[int, int]:
        """Feature number -> its column, of those of some features that the code has."""
        places = places_of(self.numbers, numbers)
        there = np.flatnonzero(places >= 0)
        columns = self.columns[places[there]].tolist()
        return {numbers[one]: column for one, column in zip(there.tolist(), columns, strict=True)}


_HELD: SizedCache[_Held] = SizedCache(32 * 2**20)
"""Of a code of 32,768 features a quarter of a megabyte. A feature of another branch is in none of the newest codes."""


def _held(artifacts: ArtifactStore, code: str) -> _Held:
    place = artifacts.path(code)

    def read() -> _Held:
        numbers = _mapped(place)["feature_numbers"]
        order = np.argsort(numbers, kind="stable")  # a re-fit leaves them in another order
        return _Held(numbers[order].astype(np.int32), order.astype(np.int32))

    return _HELD.get((place, FileState.of(place)), read)


def _examples(
    artifacts: ArtifactStore, family: Family, kept: str, columns: dict[int, int], limit: int
) -> dict[int, list[Example]]:
    described = family.positions or {}
    if "artifact" not in described:
        raise NotFoundError(f"The positions of {family.name} are not known (yet).", code="no-code")
    tops, places = artifacts.path(kept), artifacts.path(described["artifact"])
    texts = artifacts.path(described["documents"]) if described.get("documents") else None

    files = tuple((file, FileState.of(file)) for file in (tops, places, texts) if file)

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
        """About what they take in memory."""
        return 500 + 1500 * len(self.examples)


_TOP: SizedCache[_Top] = SizedCache(8 * 2**20)
"""Of some 1,600 features: what a report tells of is told of again by the next ones."""


def _top(tops: Path, places: Path, texts: Path | None, column: int, limit: int) -> _Top:
    kept, positions = _mapped(tops), _mapped(places)
    texts = texts if {"start", "end"} <= set(positions) else None
    top = kept["positions"][column]
    there = np.flatnonzero(top >= 0)[:limit]
    pairs = zip(top[there].tolist(), kept["values"][column][there].tolist(), strict=True)
    return _Top([_example(positions, texts, place, value) for place, value in pairs])


def _example(places: dict[str, np.ndarray], texts: Path | None, place: int, value: float) -> Example:
    """texts: the probe corpus as it was read, where its offsets are known."""
    document = int(places["document"][place])
    start, end = (int(places[name][place]) for name in ("start", "end")) if texts else (0, 0)
    before, token, after = _passage(texts, document, start, end) if texts else (None, None, None)
    return Example(
        document=document, position=place, text_before=before, token=token, text_after=after, activation=value
    )


def _passage(path: Path, document: int, start: int, end: int) -> tuple[str | None, str | None, str | None]:
    """(text before, at and after a token)."""
    text = document_text(path, document)
    if text is None:
        return None, None, None
    return text[max(0, start - _CONTEXT_CHARACTERS) : start], text[start:end], text[end : end + _CONTEXT_CHARACTERS]


def tensors(artifacts: ArtifactStore, name: str) -> dict[str, np.ndarray]:
    """The tensors of an artifact, mapped, not read; FileNotFoundError where it is kept no more."""
    return _mapped(artifacts.path(name))


def document_text(path: Path, document: int) -> str | None:
    """The text of a document of the probe corpus, JSON lines of `{"id", "text"}`; None where it is not there."""
    where = _line_offsets(path, FileState.of(path)).get(document)
    if where is None:
        return None
    with path.open("rb") as file:
        file.seek(where)
        text: str = json.loads(file.readline())["text"]
        return text


# An artifact never changes, but a damaged one may be restored under its name: what is kept is of one state of the file.


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, mapped, not read."""
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
    """Document id -> where its line begins."""
    offsets, at = {}, 0
    with path.open("rb") as file:
        for line in file:
            offsets[int(json.loads(line)["id"])] = at
            at += len(line)
    return offsets
