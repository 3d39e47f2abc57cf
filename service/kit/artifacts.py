"""The artifact store: immutable files under content-addressed names, on any fsspec file system.

A name is `<family id>/<kind>-<key>...` where the key is a digest of everything that the artifact was made from. Writers
make a temporary file or folder beside it and rename. What an artifact holds is written into a ledger before it gets its
name, and compared when it is opened: once in a process, and again where a file has changed since.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import fsspec

from service.kit.digests import FileState, Progress, remember, sha256_all
from service.kit.problems import NotFoundError, ProblemError

UNFINISHED = ".new"
"""Ends the names of what is being written, or removed."""
WHOLE = "manifest.json"
"""The file that says that a folder is whole: written last, removed first."""


def content_key(**inputs: Any) -> str:
    """Digest (20 hex digits) of JSON-able inputs: the key of an artifact's name."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class Entry(NamedTuple):
    """What an artifact holds: file -> (bytes, SHA-256). A single file has an empty name."""

    files: Mapping[str, tuple[int, str]]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for size, _ in self.files.values())

    @property
    def digest(self) -> str:
        """SHA-256 of the file; of a folder that over names, sizes and digests of its files."""
        if "" in self.files:
            return self.files[""][1]
        rows = [[name, *self.files[name]] for name in sorted(self.files)]
        return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


class Ledger(Protocol):
    """Where entries of artifacts are kept. Each call is a transaction of its own."""

    def find(self, name: str) -> Entry | None:
        """The entry of an artifact; None where it was made by a version that kept none."""
        ...

    def record(self, name: str, entry: Entry) -> None:
        """Write an entry, in the place of one that is there."""
        ...

    def erase(self, name: str) -> None:
        """Remove the entries of an artifact, and of what is below it."""
        ...


class MissingArtifactError(NotFoundError, FileNotFoundError):
    """An artifact that a row refers to is not in the store (any more)."""

    status, code, title = 404, "artifact-missing", "Not in the artifact store"

    def __init__(self, name: str, store: str) -> None:
        super().__init__(f"The artifact {name} is not in the store {store}.")
        self.name = name


class DamagedArtifactError(ProblemError):
    """An artifact does not hold what was written."""

    status, code, title = 500, "artifact-damaged", "Damaged artifact"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"The artifact {name} is damaged: {reason}. `featurewatch db check --deep` lists what is damaged, what "
            "depends on it and how to rebuild it."
        )
        self.name, self.reason = name, reason


class ArtifactStore:
    """Files and folders under a root URI. Remote ones are kept in a local cache once read.

    `root` is an fsspec URI; `cache` a local folder (unused where the root is local). Without a ledger nothing is
    verified.
    """

    def __init__(self, root: str, cache: Path, ledger: Ledger | None = None) -> None:
        self.fs, self.base = fsspec.core.url_to_fs(root)
        self.is_local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))
        self.cache = Path(self.base) if self.is_local else cache
        self.ledger = ledger
        self._verified: dict[str, dict[str, FileState]] = {}

    def exists(self, name: str) -> bool:
        """Whether the artifact is there, whole."""
        return bool(self.fs.exists(self._remote(name)))

    def path(self, name: str) -> Path:
        """Local path of an artifact (file or folder), verified, and fetched first where the store is remote.

        Raises MissingArtifactError, DamagedArtifactError.
        """
        local = self.cache / name
        if not local.exists():
            if self.is_local or not self.exists(name):
                raise MissingArtifactError(name, self.base)
            local.parent.mkdir(parents=True, exist_ok=True)
            temporary = local.with_name(f".{local.name}.{uuid.uuid4().hex}")
            self.fs.get(self._remote(name), str(temporary), recursive=True)
            self._settle(temporary, local)
        try:
            self.verify(name)
        except DamagedArtifactError:
            self.forget(name)  # the next attempt fetches it again: what was damaged may be this copy alone
            raise
        return local

    def verify(self, name: str, progress: Progress | None = None) -> Entry | None:
        """Compare this machine's files of an artifact with the ledger; its entry. DamagedArtifactError.

        None where the ledger has no entry: the artifact is older than the ledger.
        """
        files = _files_of(self.cache / name)
        states = {key: FileState.of(path) for key, path in files.items()}
        if self.ledger is None or self._verified.get(name) == states:
            return None
        entry = self.ledger.find(name)
        if entry is None:
            return None
        for key in sorted(entry.files.keys() | files.keys()):
            title = key or Path(name).name
            if key not in files or key not in entry.files:
                raise DamagedArtifactError(name, f"{title} {'is missing' if key not in files else 'does not belong'}")
            if states[key].size != entry.files[key][0]:
                raise DamagedArtifactError(
                    name, f"{title} has {states[key].size:,} bytes, {entry.files[key][0]:,} were written"
                )
        digests = dict(zip(files, sha256_all(list(files.values()), progress), strict=True))
        for key, digest in digests.items():
            if digest != entry.files[key][1]:
                raise DamagedArtifactError(
                    name, f"{key or Path(name).name} does not hold what was written (its SHA-256 differs)"
                )
        self._verified[name] = states
        return entry

    def adopt(self, name: str, progress: Progress | None = None) -> Entry:
        """Enter an artifact into the ledger as it is: one that is older than the ledger."""
        assert self.ledger is not None
        entry = entry_of(self.cache / name, progress)
        self.ledger.record(name, entry)
        return entry

    @contextmanager
    def create(self, name: str, *, ledger: Ledger | None = None) -> Iterator[Path]:
        """A temporary local path to write a file or make a folder at; on leaving it becomes the artifact.

        Nothing is left where the body raises. Of two writers of one name the first one wins: they wrote the same.
        ledger: where it is entered; None: the store's own, in a transaction of its own.
        """
        ledger = ledger or self.ledger
        local = self.cache / name
        local.parent.mkdir(parents=True, exist_ok=True)
        temporary = local.with_name(f".{local.name}.{uuid.uuid4().hex}{UNFINISHED}")
        try:
            yield temporary
            _fsync_tree(temporary)
            # Before the name is given: what is in the store under its name is in the ledger.
            entry = entry_of(temporary)
            if ledger:
                ledger.record(name, entry)
            self._settle(temporary, local)
            self._remember(name, local, entry)
            if not self.is_local:
                self._upload(local, name)
        finally:
            _remove(temporary)

    def clear(self, prefix: str) -> None:
        """Remove what killed writers left on this machine under names that begin with `prefix`, a folder.

        Only for who may write there alone: a writer that is still alive loses its file and fails.
        """
        for path in (self.cache / prefix).glob(f".*{UNFINISHED}"):
            _remove(path)

    def listing(self, folder: str) -> dict[str, int]:
        """Artifact -> bytes, of those directly in a folder. What is being written is left out."""
        root, sizes = self._remote(folder), dict[str, int]()
        self.fs.invalidate_cache()
        for path, info in self.fs.find(root, detail=True).items():
            part = path.removeprefix(root).lstrip("/").partition("/")[0]
            if not part.startswith("."):
                name = f"{folder}/{part}"
                sizes[name] = sizes.get(name, 0) + int(info["size"] or 0)
        return sizes

    def modified(self, name: str) -> datetime:
        """When an artifact was written, the last file of a folder. FileNotFoundError where it is not there."""
        times = [self.fs.modified(path) for path in self.fs.find(self._remote(name))]
        if not times:
            raise MissingArtifactError(name, self.base)
        return max(time if time.tzinfo else time.replace(tzinfo=UTC) for time in times)

    def remove(self, name: str, *, entry: bool = True) -> None:
        """Remove an artifact; one that is not there is no error. A folder that is half removed is never there.

        entry: remove it from the ledger too, in a transaction of its own. False: the caller does.
        """
        if entry and self.ledger:
            self.ledger.erase(name)
        self._verified.pop(name, None)
        if self.is_local:
            hidden = self.cache / name
            hidden = hidden.with_name(f".{hidden.name}.{uuid.uuid4().hex}{UNFINISHED}")
            with suppress(FileNotFoundError):
                (self.cache / name).rename(hidden)
            _remove(hidden)
            return
        remote = self._remote(name)
        if self.fs.exists(f"{remote}/{WHOLE}"):
            self.fs.rm_file(f"{remote}/{WHOLE}")
        if self.fs.exists(remote):
            self.fs.rm(remote, recursive=True)
        _remove(self.cache / name)

    def forget(self, name: str) -> None:
        """Remove this machine's copy of an artifact of a remote store."""
        if not self.is_local:
            _remove(self.cache / name)

    def _remember(self, name: str, local: Path, entry: Entry) -> None:
        """What was just written need not be read again."""
        files = _files_of(local)
        if files.keys() != entry.files.keys():  # another writer of the name was first
            return
        for key, path in files.items():
            remember(path, entry.files[key][1])
        self._verified[name] = {key: FileState.of(path) for key, path in files.items()}

    def _remote(self, name: str) -> str:
        return f"{self.base.rstrip('/')}/{name}"

    def _upload(self, local: Path, name: str) -> None:
        # Object stores have no rename of folders: the part that says "whole" goes last.
        if local.is_dir():
            files = sorted((f for f in local.rglob("*") if f.is_file()), key=lambda f: f.name == WHOLE)
            for file in files:
                self.fs.put_file(str(file), f"{self._remote(name)}/{file.relative_to(local)}")
        else:
            self.fs.put_file(str(local), self._remote(name))

    @staticmethod
    def _settle(temporary: Path, local: Path) -> None:
        if temporary.is_dir() and local.exists():
            return
        temporary.rename(local)


def entry_of(path: Path, progress: Progress | None = None) -> Entry:
    """What a file or folder holds, read in full."""
    files = _files_of(path)
    digests = sha256_all(list(files.values()), progress)
    pairs = zip(files.items(), digests, strict=True)
    return Entry({name: (file.stat().st_size, digest) for (name, file), digest in pairs})


def _files_of(path: Path) -> dict[str, Path]:
    """The files of an artifact by their names in it; a file's own is empty. FileNotFoundError where it is not there."""
    if not path.is_dir():
        path.stat()
        return {"": path}
    found = sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): file for file in found}


def _fsync_tree(path: Path) -> None:
    """Push a file, or each file of a folder, to the disk: a rename must not come before the bytes."""
    for file in _files_of(path).values():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
