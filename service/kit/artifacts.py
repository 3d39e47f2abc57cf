"""The artifact store: immutable files with content-addressed names, on any fsspec file system.

A name is `<family id>/<kind>-<key>...`, where the key is a digest of all inputs of the artifact. Writers create a
temporary file or folder next to it and rename that. The sizes and digests of its files are recorded in a ledger before
the artifact gets its name, and verified when it is opened: once per process, and again if a file has changed since.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import fsspec
import structlog

from featurewatch.service.kit.digests import FileState, remember, sha256_all
from featurewatch.service.kit.problems import NotFoundError, ProblemError

log = structlog.get_logger("featurewatch.artifacts")

UNFINISHED = ".new"
"""Suffix of artifacts that are being written or removed."""
DAMAGED = ".damaged"
"""Suffix of damaged artifacts that were set aside."""
WHOLE = "manifest.json"
"""The file that marks a folder as complete: written last, removed first."""


def content_key(**inputs: Any) -> str:
    """Digest (20 hex digits) of JSON-able inputs: the key of an artifact's name."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class Entry(NamedTuple):
    """The contents of an artifact: file -> (bytes, SHA-256). A single file has an empty name."""

    files: Mapping[str, tuple[int, str]]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for size, _ in self.files.values())

    @property
    def digest(self) -> str:
        """SHA-256 of the file or, for a folder, of the names, sizes and digests of its files."""
        if "" in self.files:
            return self.files[""][1]
        rows = [[name, *self.files[name]] for name in sorted(self.files)]
        return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


class Ledger(Protocol):
    """Stores the entries of artifacts. Each call is a separate transaction."""

    def find(self, name: str) -> Entry | None:
        """The entry of an artifact, or None if a version without a ledger created it."""
        ...

    def record(self, name: str, entry: Entry) -> None:
        """Write an entry, replacing an existing one."""
        ...

    def recording(self, name: str, entry: Entry) -> AbstractContextManager[None]:
        """Like `record`, in a transaction that lasts as long as the context. Other writers of the name wait."""
        ...

    def adopt(self, name: str, entry: Entry) -> bool:
        """Write an entry unless one exists. False if the ledger cannot be written to now."""
        ...

    def erase(self, name: str) -> None:
        """Remove the entries of an artifact and of everything below it."""
        ...


class MissingArtifactError(NotFoundError, FileNotFoundError):
    """An artifact that a row refers to is not in the store."""

    status, code, title = 404, "artifact-missing", "Not in the artifact store"

    def __init__(self, name: str, store: str) -> None:
        super().__init__(f"The artifact {name} is not in the store {store}.")
        self.name = name


class DamagedArtifactError(ProblemError):
    """The contents of an artifact differ from what was written."""

    status, code, title = 500, "artifact-damaged", "Damaged artifact"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"The artifact {name} is damaged: {reason}. `featurewatch db check --deep` lists what is damaged, what "
            "depends on it and how to rebuild it."
        )
        self.name, self.reason = name, reason


class ArtifactStore:
    """Files and folders under a root URI. Remote ones are cached locally when they are read.

    root: an fsspec URI. cache: a local folder, unused if the root is local. ledger: without one, nothing is verified.
    adopts: record artifacts that have no entry, as they are, when they are first opened.
    """

    def __init__(self, root: str, cache: Path, ledger: Ledger | None = None, *, adopts: bool = False) -> None:
        self.fs, self.base = fsspec.core.url_to_fs(root)
        self.is_local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))
        self.cache = Path(self.base) if self.is_local else cache
        self.ledger, self.adopts = ledger, adopts
        self._verified: dict[str, dict[str, FileState]] = {}

    def exists(self, name: str) -> bool:
        """Whether the artifact exists and is complete."""
        return bool(self.fs.exists(self._remote(name)))

    def path(self, name: str) -> Path:
        """Local path of an artifact (file or folder), verified, and fetched first if the store is remote.

        Raises MissingArtifactError, DamagedArtifactError.
        """
        attempts = 1 if self.is_local else 2
        for attempt in range(1, attempts + 1):
            self._fetch(name)
            try:
                self.verify(name)
            except DamagedArtifactError as error:
                self.forget(name)
                if attempt == attempts:
                    raise
                # Perhaps only the copy on this machine is damaged.
                log.warning("fetching an artifact again", artifact=name, reason=error.reason)
            else:
                break
        return self.cache / name

    def verify(self, name: str) -> None:
        """Compare this machine's files of an artifact with the ledger. Raises DamagedArtifactError.

        An artifact without an entry is older than the ledger, or newer than the backup that the database comes from.
        """
        if self.ledger is None:
            return
        files = _files_of(self.cache / name)
        states = {key: FileState.of(path) for key, path in files.items()}
        if self._verified.get(name) == states:
            return
        entry = self.ledger.find(name)
        if entry is None:
            if self.adopts and self.adopt(name):
                log.warning("adopted an artifact that had no digest", artifact=name)
            return
        for key in sorted(entry.files.keys() | files.keys()):
            title = key or Path(name).name
            if key not in files or key not in entry.files:
                raise DamagedArtifactError(
                    name, f"{title} {'is missing' if key not in files else 'does not belong to it'}"
                )
            if states[key].size != entry.files[key][0]:
                raise DamagedArtifactError(
                    name, f"{title} has {states[key].size:,} bytes instead of {entry.files[key][0]:,}"
                )
        digests = dict(zip(files, sha256_all(list(files.values())), strict=True))
        for key, digest in digests.items():
            if digest != entry.files[key][1]:
                raise DamagedArtifactError(
                    name, f"the contents of {key or Path(name).name} have changed (its SHA-256 differs)"
                )
        self._verified[name] = states

    def adopt(self, name: str) -> bool:
        """Record this machine's files of an artifact in the ledger as they are. False if that is not possible now."""
        assert self.ledger is not None
        return self.ledger.adopt(name, entry_of(self.cache / name))

    def digest(self, name: str) -> str | None:
        """SHA-256 of an artifact from the ledger, or None if it has no entry."""
        entry = self.ledger.find(name) if self.ledger else None
        return entry.digest if entry else None

    @contextmanager
    def create(self, name: str, *, ledger: Ledger | None = None) -> Iterator[Path]:
        """Yield a temporary local path for a file or folder, which becomes the artifact at the end.

        If the body raises, nothing remains. An existing artifact is replaced: of two writers, the last one wins. A
        damaged copy that was set aside is removed.
        ledger: where to record it; None: the store's own ledger, in a separate transaction.
        """
        ledger = ledger or self.ledger
        local = self.cache / name
        local.parent.mkdir(parents=True, exist_ok=True)
        temporary = _hidden(local)
        try:
            yield temporary
            _fsync_tree(temporary)
            entry, written = entry_of(temporary), _identities(temporary)
            # Before the rename, so that every artifact in the store has an entry.
            if ledger:
                ledger.record(name, entry)
            # Again with the rename: if two writers differ, the entry is that of the last rename.
            with ledger.recording(name, entry) if ledger else nullcontext():
                replaced = _replace(temporary, local)
                self._remember(name, entry, written)
            _remove(replaced)
            if not self.is_local:
                self._upload(local, name)
            self.discard(name)
        finally:
            _remove(temporary)

    def clear(self, prefix: str) -> None:
        """Remove what killed writers left on this machine in the folder `prefix`.

        Only call it as the single writer there: any other writer loses its file and fails.
        """
        for path in (self.cache / prefix).glob(f".*{UNFINISHED}"):
            _remove(path)

    def listing(self, folder: str) -> dict[str, int]:
        """Artifact -> bytes, directly in a folder. Unfinished ones are omitted."""
        return {f"{folder}/{part}": size for part, size in self._parts(folder).items() if not part.startswith(".")}

    def put_aside(self, name: str) -> None:
        """Rename a damaged artifact so that it can be rebuilt. The damaged copy is kept until then."""
        if not self.exists(name):
            return
        aside = self._aside(name)
        self._discard(aside)
        if self.is_local:
            (self.cache / name).rename(aside)
        else:
            self.fs.copy(self._remote(name), aside, recursive=True)
        self.remove(name, entry=False)

    def put_asides(self, folder: str) -> dict[str, int]:
        """Artifact -> bytes of the damaged copies directly in a folder that were set aside."""
        return {
            f"{folder}/{part[1:].removesuffix(DAMAGED)}": size
            for part, size in self._parts(folder).items()
            if part.startswith(".") and part.endswith(DAMAGED)
        }

    def discard(self, name: str) -> None:
        """Remove the damaged copy of an artifact that was set aside, if there is one."""
        self._discard(self._aside(name))

    def modified(self, name: str) -> datetime:
        """When an artifact, or the last file of a folder, was written. FileNotFoundError if it does not exist."""
        times = [self.fs.modified(path) for path in self.fs.find(self._remote(name))]
        if not times:
            raise MissingArtifactError(name, self.base)
        return max(time if time.tzinfo else time.replace(tzinfo=UTC) for time in times)

    def remove(self, name: str, *, entry: bool = True) -> None:
        """Remove an artifact, if it exists. A folder is renamed first, so that it is never half removed.

        entry: also remove it from the ledger, in a separate transaction. If False, the caller does that.
        """
        if entry and self.ledger:
            self.ledger.erase(name)
        self._verified.pop(name, None)
        if self.is_local:
            hidden = _hidden(self.cache / name)
            with suppress(FileNotFoundError):
                (self.cache / name).rename(hidden)
            _remove(hidden)
            return
        self._discard(self._remote(name))
        _remove(self.cache / name)

    def forget(self, name: str) -> None:
        """Remove this machine's copy of an artifact in a remote store."""
        if not self.is_local:
            _remove(self.cache / name)

    def _fetch(self, name: str) -> None:
        """Make sure that this machine has a copy. Raises MissingArtifactError."""
        local = self.cache / name
        if local.exists():
            return
        if self.is_local or not self.exists(name):
            raise MissingArtifactError(name, self.base)
        local.parent.mkdir(parents=True, exist_ok=True)
        temporary = local.with_name(f".{local.name}.{uuid.uuid4().hex}")
        try:
            self.fs.get(self._remote(name), str(temporary), recursive=True)
            temporary.rename(local)
        except OSError:
            if not local.exists():
                raise
            # Another process has fetched the same folder in the meantime.
        finally:
            _remove(temporary)

    def _remember(self, name: str, entry: Entry, written: dict[str, tuple[int, ...]]) -> None:
        """Mark the files just written as verified, unless another writer has replaced them."""
        local = self.cache / name
        if self.ledger is None or _identities(local) != written:
            return
        files = _files_of(local)
        for key, path in files.items():
            remember(path, entry.files[key][1])
        self._verified[name] = {key: FileState.of(path) for key, path in files.items()}

    def _parts(self, folder: str) -> dict[str, int]:
        """Name -> bytes of everything directly in a folder."""
        root, sizes = self._remote(folder), dict[str, int]()
        self.fs.invalidate_cache()
        for path, info in self.fs.find(root, detail=True).items():
            part = path.removeprefix(root).lstrip("/").partition("/")[0]
            sizes[part] = sizes.get(part, 0) + int(info["size"] or 0)
        return sizes

    def _aside(self, name: str) -> str:
        folder, _, last = self._remote(name).rpartition("/")
        return f"{folder}/.{last}{DAMAGED}"

    def _discard(self, path: str) -> None:
        """Remove a file or folder of the store, starting with its completion marker."""
        if self.fs.exists(f"{path}/{WHOLE}"):
            self.fs.rm_file(f"{path}/{WHOLE}")
        if self.fs.exists(path):
            self.fs.rm(path, recursive=True)

    def _remote(self, name: str) -> str:
        return f"{self.base.rstrip('/')}/{name}"

    def _upload(self, local: Path, name: str) -> None:
        # Object stores cannot rename folders, so the completion marker is uploaded last.
        if local.is_dir():
            self._discard(self._remote(name))
            files = sorted((f for f in local.rglob("*") if f.is_file()), key=lambda f: f.name == WHOLE)
            for file in files:
                self.fs.put_file(str(file), f"{self._remote(name)}/{file.relative_to(local)}")
        else:
            self.fs.put_file(str(local), self._remote(name))


def entry_of(path: Path) -> Entry:
    """The entry for a file or folder, which is read in full."""
    files = _files_of(path)
    pairs = zip(files.items(), sha256_all(list(files.values())), strict=True)
    return Entry({name: (file.stat().st_size, digest) for (name, file), digest in pairs})


def _files_of(path: Path) -> dict[str, Path]:
    """The files of an artifact by name; a single file has an empty name. FileNotFoundError if it does not exist."""
    if not path.is_dir():
        path.stat()
        return {"": path}
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): file for file in files}


def _identities(path: Path) -> dict[str, tuple[int, ...]]:
    """Identifies the files of an artifact; unchanged by a rename."""
    states = {key: file.stat() for key, file in _files_of(path).items()}
    return {key: (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) for key, stat in states.items()}


def _hidden(path: Path) -> Path:
    """A new hidden name next to an artifact, which `clear` removes."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{UNFINISHED}")


def _replace(new: Path, place: Path) -> Path:
    """Rename a file or folder to `place`. Returns the path to which an existing folder there was moved.

    A folder cannot be replaced in one step: for a moment nothing has the name.
    """
    replaced = _hidden(place)
    if new.is_dir() or place.is_dir():
        with suppress(FileNotFoundError):
            place.rename(replaced)
    new.rename(place)
    return replaced


def _fsync_tree(path: Path) -> None:
    """Flush a file, or each file of a folder, to disk, so that a rename cannot precede the contents."""
    for file in _files_of(path).values():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
