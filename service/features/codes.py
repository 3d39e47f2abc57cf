"""The sparse code and its examples, read from the artifact store without torch and without holding all of it."""

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from sqlalchemy.orm import Session

from service.checkpoints.tensorfile import read_header
from service.features import queries
from service.features.schemas import Example
from service.kit.artifacts import ArtifactStore
from service.kit.problems import NotFoundError
from service.models import Code, Family, Feature

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
    with safe_open(str(artifacts.path(code.artifact)), framework="numpy") as file:
        numbers: np.ndarray = file.get_tensor("feature_numbers")
        return numbers


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
    for code, checkpoint in queries.codes(session, family.id):
        columns = np.flatnonzero(feature_numbers(artifacts, code) == feature.number)
        if len(columns):
            return checkpoint, _examples(artifacts, family, code, int(columns[0]), limit)
    raise NotFoundError(f"No code holds the feature F{feature.number} (yet).", code="no-code")


def examples_of(
    session: Session, artifacts: ArtifactStore, family: Family, numbers: Sequence[int], limit: int
) -> dict[int, list[Example]]:
    """Feature number -> its top examples, of many features at once; empty where nothing is kept of them (any more)."""
    found: dict[int, list[Example]] = {number: [] for number in numbers}
    wanted = set(numbers)
    for code, _ in queries.codes(session, family.id):
        if not wanted:
            break
        try:
            columns = feature_numbers(artifacts, code)
            here = {int(columns[column]): int(column) for column in np.flatnonzero(np.isin(columns, list(wanted)))}
            for number, column in here.items():
                found[number] = _examples(artifacts, family, code, column, limit)
        except (FileNotFoundError, NotFoundError):
            continue  # a report is worth having without them
        wanted -= set(here)
    return found


def _examples(artifacts: ArtifactStore, family: Family, code: Code, column: int, limit: int) -> list[Example]:
    with safe_open(str(artifacts.path(code.examples)), framework="numpy") as file:
        places = file.get_slice("positions")[column : column + 1][0]
        values = file.get_slice("values")[column : column + 1][0]
    kept = [(int(place), float(value)) for place, value in zip(places, values, strict=True) if place >= 0][:limit]
    described = family.positions or {}
    if "artifact" not in described:
        raise NotFoundError(f"The positions of {family.name} are not known (yet).", code="no-code")
    texts = _Texts(artifacts.path(described["documents"])) if described.get("documents") else None
    found = []
    with safe_open(str(artifacts.path(described["artifact"])), framework="numpy") as file:
        offsets = {"start", "end"} <= set(file.keys())
        for place, value in kept:
            document = int(file.get_slice("document")[place : place + 1][0])
            before = token = after = None
            if texts is not None and offsets:
                start = int(file.get_slice("start")[place : place + 1][0])
                end = int(file.get_slice("end")[place : place + 1][0])
                before, token, after = texts.around(document, start, end)
            found.append(
                Example(
                    document=document,
                    position=place,
                    text_before=before,
                    token=token,
                    text_after=after,
                    activation=value,
                )
            )
    return found


class _Texts:
    """The probe corpus as it was read: JSON lines of `{"id", "text"}`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def around(self, document: int, start: int, end: int) -> tuple[str | None, str | None, str | None]:
        """Text before, at and after the characters `start` to `end` of a document; None where it is not there."""
        text = document_text(self.path, document)
        if text is None:
            return None, None, None
        return text[max(0, start - _CONTEXT_CHARACTERS) : start], text[start:end], text[end : end + _CONTEXT_CHARACTERS]


def document_text(path: Path, document: int) -> str | None:
    """The text of a document of the probe corpus, JSON lines of `{"id", "text"}`; None where it is not there."""
    where = _line_offsets(str(path)).get(document)
    if where is None:
        return None
    with path.open("rb") as file:
        file.seek(where)
        text: str = json.loads(file.readline())["text"]
        return text


@lru_cache(maxsize=8)
def _line_offsets(path: str) -> dict[int, int]:
    """Document id -> where its line begins. Artifacts never change, so this is kept."""
    offsets, at = {}, 0
    with Path(path).open("rb") as file:
        for line in file:
            offsets[int(json.loads(line)["id"])] = at
            at += len(line)
    return offsets
