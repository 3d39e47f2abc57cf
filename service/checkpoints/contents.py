"""What a checkpoint consists of: exactly the files that a worker reads, with sizes and digests.

A checkpoint's identity is the SHA-256 over the names, sizes and digests of these files, each read in full. Between a
registration and the moment when a worker has read everything, a file is known by its state (`FileState`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from featurewatch.service.checkpoints import adapters, manifest, weights
from featurewatch.service.checkpoints.faults import UnusableError
from featurewatch.service.kit.digests import ChangedWhileReadError, FileState, Progress, sha256_all, sha256_within
from featurewatch.service.kit.paths import PathRefusedError, hold_to_roots

ACTIVATIONS = "activations+"
MODEL, ADAPTER = "model", "adapter"
# Beside the weights: configuration, tokenizers, chat templates. Nothing here can run code when it is read.
BESIDE = ("*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")
MAX_BESIDE = 200
# transformers would follow it to the base model that it names, wherever that is.
NEVER = frozenset({adapters.CONFIG})
ADAPTER_FILES = (adapters.CONFIG, adapters.WEIGHTS)


class File(NamedTuple):
    """A file of a checkpoint. `sha256` is None until somebody has read it whole."""

    state: FileState
    sha256: str | None = None


@dataclass(frozen=True)
class Contents:
    """Files of a checkpoint by name: `model/config.json`, `adapter/adapter_model.safetensors`."""

    files: Mapping[str, File]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.state.size for file in self.files.values())

    @property
    def digest(self) -> str | None:
        """SHA-256 over names, sizes and digests; None while a file has not been read."""
        rows = [[name, file.state.size, file.sha256] for name, file in sorted(self.files.items())]
        if any(row[2] is None for row in rows):
            return None
        return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()

    def part(self, name: str) -> "Contents":
        """The files of the model, or those of the adapter."""
        return Contents({key: file for key, file in self.files.items() if key.startswith(f"{name}/")})

    def to_json(self) -> dict[str, Any]:
        return {name: [*file.state, file.sha256] for name, file in self.files.items()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Contents":
        return cls({name: File(FileState(*row[:3]), row[3]) for name, row in stored.items()})


def model_files(path: Path, budget: int | None = None) -> dict[str, Path]:
    """The files of a model that are read, by name: of a Hugging Face folder, or of one .gguf file.

    budget: bytes of an index up to which it is parsed. UnusableError `too-large`, and those of `weights.weight_files`.
    """
    if path.is_file():
        return {path.name: path}
    index = path / "model.safetensors.index.json"
    found = {file.relative_to(path).as_posix(): file for file in weights.weight_files(path, budget)}
    beside = {file.name: file for pattern in BESIDE for file in path.glob(pattern) if file.is_file()}
    for name in NEVER | ({index.name} if "model.safetensors" in found else set()):
        beside.pop(name, None)
    if len(beside) > MAX_BESIDE:
        raise UnusableError(
            "too-large", f"{path.name} has {len(beside):,} configuration files; a model has at most {MAX_BESIDE}."
        )
    return found | beside


def adapter_files(folder: Path) -> dict[str, Path]:
    """The files of a PEFT adapter that are read."""
    return {name: folder / name for name in ADAPTER_FILES}


def activation_files(folder: Path, hook_points: Sequence[str]) -> dict[str, Path]:
    """The files of activations that were brought along: manifest, documents and the shards of these hook points."""
    listed = manifest.read(folder)
    names = [manifest.FILE, listed["documents"]]
    names += [shard for hook in hook_points for shard in listed["hook_points"].get(hook, {"shards": []})["shards"]]
    return {name: folder / name if name == manifest.FILE else weights.member(folder, name) for name in names}


def checkpoint_files(
    uri: str, model: Path | None, adapter: Path | None, hook_points: Sequence[str], budget: int | None = None
) -> dict[str, Path]:
    """All files of a checkpoint, named as in `Contents`, from the places where its parts are. None: not in sight."""
    found: dict[str, Path] = {}
    if model is not None:
        brought_along = uri.startswith(ACTIVATIONS)
        files = activation_files(model, hook_points) if brought_along else model_files(model, budget)
        found |= {f"{MODEL}/{name}": file for name, file in files.items()}
    if adapter is not None:
        found |= {f"{ADAPTER}/{name}": file for name, file in adapter_files(adapter).items()}
    return found


def check_links(files: Mapping[str, Path], roots: tuple[Path, ...]) -> None:
    """UnusableError where a file is a link that leads to a place that could not be named itself."""
    for file in files.values():
        try:
            hold_to_roots(file, roots)
        except PathRefusedError as error:
            raise UnusableError("path-refused", f"{error}.") from error


def states(files: Mapping[str, Path]) -> Contents:
    """Contents that nobody has read yet."""
    return Contents({name: File(FileState.of(path)) for name, path in files.items()})


def digested(files: Mapping[str, Path], progress: Progress | None = None) -> Contents:
    """Contents with the digest of every file. ChangedWhileReadError where one is written to meanwhile."""
    before = states(files)
    return _with(before, files, sha256_all(list(files.values()), progress))


def digested_within(files: Mapping[str, Path], seconds: float) -> Contents | None:
    """As `digested`; None where it takes longer. It goes on in the background: ask again."""
    before = states(files)
    digests = sha256_within(list(files.values()), seconds)
    return None if digests is None else _with(before, files, digests)


def _with(before: Contents, files: Mapping[str, Path], digests: Sequence[str]) -> Contents:
    for name, file in states(files).files.items():
        if file != before.files[name]:
            raise ChangedWhileReadError(files[name])
    pairs = zip(before.files.items(), digests, strict=True)
    return Contents({name: File(file.state, digest) for (name, file), digest in pairs})


def difference(before: Contents, now: Contents) -> str | None:
    """What makes two contents differ, for people; None where they are the same, as far as both are known.

    A file whose digest is known on both sides is judged by that alone, any other one by its state.
    """
    for name in sorted(before.files.keys() | now.files.keys()):
        old, new = before.files.get(name), now.files.get(name)
        title = name.partition("/")[2]
        if old is None or new is None:
            return f"{title} is {'new' if old is None else 'gone'}"
        if old.state.size != new.state.size:
            return f"{title} has {new.state.size:,} bytes, not {old.state.size:,}"
        if old.sha256 is not None and new.sha256 is not None:
            if old.sha256 != new.sha256:
                return f"{title} has another content (SHA-256 {new.sha256[:12]}, not {old.sha256[:12]})"
        elif old.state != new.state:
            return f"{title} was written to"
    return None


def undecided(before: Contents, now: Contents) -> bool:
    """Whether only hashing `now` can tell whether the two are the same: states differ, names and sizes do not."""
    parts = [(before.part(part), now.part(part)) for part in (MODEL, ADAPTER)]
    seen = [(old, new) for old, new in parts if old.files and new.files and difference(old, new) is not None]
    return bool(seen) and all(
        {name: file.state.size for name, file in old.files.items()}
        == {name: file.state.size for name, file in new.files.items()}
        and all(file.sha256 for file in old.files.values())
        and not all(file.sha256 for file in new.files.values())
        for old, new in seen
    )
