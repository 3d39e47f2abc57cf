"""The files of a checkpoint: exactly those that a worker reads, with sizes and digests.

A checkpoint's identity is the SHA-256 over the names, sizes and digests of these files, each read in full. From
registration until a worker has read everything, a file is identified by its `FileState`.
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
# Configuration, tokenizers and chat templates beside the weights. Reading them cannot run code.
BESIDE = ("*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")
MAX_BESIDE = 200
# transformers would load the base model that it names, wherever that is.
NEVER = frozenset({adapters.CONFIG})
ADAPTER_FILES = (adapters.CONFIG, adapters.WEIGHTS)


class File(NamedTuple):
    """A file of a checkpoint. `sha256` is None until the file has been read in full."""

    state: FileState
    sha256: str | None = None


@dataclass(frozen=True)
class Contents:
    """Files of a checkpoint by name: `model/config.json`, `adapter/adapter_model.safetensors`."""

    files: Mapping[str, File]

    @property
    def size(self) -> int:
        """Total bytes of all files."""
        return sum(file.state.size for file in self.files.values())

    @property
    def digest(self) -> str | None:
        """SHA-256 over names, sizes and digests; None until every file has been read."""
        rows = [[name, file.state.size, file.sha256] for name, file in sorted(self.files.items())]
        if any(row[2] is None for row in rows):
            return None
        return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()

    def part(self, name: str) -> "Contents":
        """Only the files of one part, MODEL or ADAPTER."""
        return Contents({key: file for key, file in self.files.items() if key.startswith(f"{name}/")})

    def to_json(self) -> dict[str, Any]:
        return {name: [*file.state, file.sha256] for name, file in self.files.items()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Contents":
        return cls({name: File(FileState(*row[:3]), row[3]) for name, row in stored.items()})


def model_files(path: Path, budget: int | None = None) -> dict[str, Path]:
    """The files of a model by name, from a Hugging Face folder or a single .gguf file.

    A weight index of more than `budget` bytes is not parsed. Raises UnusableError `too-large`, and those of
    `weights.weight_files`.
    """
    if path.is_file():
        return {path.name: path}
    index = path / "model.safetensors.index.json"
    weight_files = {file.relative_to(path).as_posix(): file for file in weights.weight_files(path, budget)}
    beside = {file.name: file for pattern in BESIDE for file in path.glob(pattern) if file.is_file()}
    for name in NEVER | ({index.name} if "model.safetensors" in weight_files else set()):
        beside.pop(name, None)
    if len(beside) > MAX_BESIDE:
        raise UnusableError(
            "too-large", f"{path.name} has {len(beside):,} configuration files; the limit is {MAX_BESIDE}."
        )
    return weight_files | beside


def adapter_files(folder: Path) -> dict[str, Path]:
    """The files of a PEFT adapter by name."""
    return {name: folder / name for name in ADAPTER_FILES}


def activation_files(folder: Path, hook_points: Sequence[str]) -> dict[str, Path]:
    """The files of precomputed activations: the manifest, the documents and the shards of these hook points."""
    listed = manifest.read(folder)
    names = [manifest.FILE, listed["documents"]]
    names += [shard for hook in hook_points for shard in listed["hook_points"].get(hook, {"shards": []})["shards"]]
    return {name: folder / name if name == manifest.FILE else weights.member(folder, name) for name in names}


def checkpoint_files(
    uri: str, model: Path | None, adapter: Path | None, hook_points: Sequence[str], budget: int | None = None
) -> dict[str, Path]:
    """All files of a checkpoint, named as in `Contents`. `model` or `adapter` is None where this host cannot see it."""
    files: dict[str, Path] = {}
    if model is not None:
        precomputed = uri.startswith(ACTIVATIONS)
        parts = activation_files(model, hook_points) if precomputed else model_files(model, budget)
        files |= {f"{MODEL}/{name}": file for name, file in parts.items()}
    if adapter is not None:
        files |= {f"{ADAPTER}/{name}": file for name, file in adapter_files(adapter).items()}
    return files


def check_links(files: Mapping[str, Path], roots: tuple[Path, ...]) -> None:
    """Raise UnusableError if a file is a symbolic link to a path outside the roots."""
    for file in files.values():
        try:
            hold_to_roots(file, roots)
        except PathRefusedError as error:
            raise UnusableError("path-refused", f"{error}.") from error


def states(files: Mapping[str, Path]) -> Contents:
    """Contents with file states only, no digests."""
    return Contents({name: File(FileState.of(path)) for name, path in files.items()})


def digested(files: Mapping[str, Path], progress: Progress | None = None) -> Contents:
    """Contents with the digest of every file. Raises ChangedWhileReadError if a file is modified meanwhile."""
    before = states(files)
    return _with(before, files, sha256_all(list(files.values()), progress))


def digested_within(files: Mapping[str, Path], seconds: float) -> Contents | None:
    """As `digested`, or None if it takes longer than `seconds`; hashing then continues in the background."""
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
    """The first difference between two contents, in words; None if none is known.

    Files are compared by digest where both digests are known, otherwise by state.
    """
    for name in sorted(before.files.keys() | now.files.keys()):
        old, new = before.files.get(name), now.files.get(name)
        title = name.partition("/")[2]
        if old is None or new is None:
            return f"{title} was {'added' if old is None else 'removed'}"
        if old.state.size != new.state.size:
            return f"the size of {title} changed from {old.state.size:,} to {new.state.size:,} bytes"
        if old.sha256 is not None and new.sha256 is not None:
            if old.sha256 != new.sha256:
                return f"the content of {title} changed (SHA-256 from {old.sha256[:12]} to {new.sha256[:12]})"
        elif old.state != new.state:
            return f"{title} was modified"
    return None


def undecided(before: Contents, now: Contents) -> bool:
    """Whether only hashing `now` can tell if the two are equal: states differ, names and sizes do not."""
    parts = [(before.part(part), now.part(part)) for part in (MODEL, ADAPTER)]
    changed = [(old, new) for old, new in parts if old.files and new.files and difference(old, new) is not None]
    return bool(changed) and all(
        {name: file.state.size for name, file in old.files.items()}
        == {name: file.state.size for name, file in new.files.items()}
        and all(file.sha256 for file in old.files.values())
        and not all(file.sha256 for file in new.files.values())
        for old, new in changed
    )
