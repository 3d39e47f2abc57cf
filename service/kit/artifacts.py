"""The artifact store: immutable files under content-addressed names, on any fsspec file system.

A name is `<family id>/<kind>-<key>...` where the key is a digest of everything that the artifact was made from, so
an artifact that exists is an artifact that is right. Writers make a temporary file or folder beside it and rename.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec

from service.config import Settings
from service.kit.problems import NotFoundError

UNFINISHED = ".new"
"""Ends the names of what is being written, or removed."""
WHOLE = "manifest.json"
"""The file that says that a folder is whole: written last, removed first."""


def content_key(**inputs: Any) -> str:
    """Digest (20 hex digits) of JSON-able inputs: the key of an artifact's name."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def open_store(settings: Settings) -> "ArtifactStore":
    """The artifact store of an installation."""
    return ArtifactStore(settings.artifacts_uri, settings.data_dir / "cache" / "artifacts")


class MissingArtifactError(NotFoundError, FileNotFoundError):
    """An artifact that a row refers to is not in the store (any more)."""

    status, code, title = 404, "artifact-missing", "Not in the artifact store"


class ArtifactStore:
    """Files and folders under a root URI. Remote ones are kept in a local cache once read.

    `root` is an fsspec URI; `cache` a local folder (unused where the root is local).
    """

    def __init__(self, root: str, cache: Path) -> None:
        self.fs, self.base = fsspec.core.url_to_fs(root)
        self.is_local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))
        self.cache = Path(self.base) if self.is_local else cache

    def exists(self, name: str) -> bool:
        """Whether the artifact is there, whole."""
        return bool(self.fs.exists(self._remote(name)))

    def path(self, name: str) -> Path:
        """Local path of an artifact (file or folder), fetched first where the store is remote.

        Raises MissingArtifactError that names the artifact.
        """
        local = self.cache / name
        if self.is_local:
            if not local.exists():
                raise MissingArtifactError(f"The artifact {name} is not in the store {self.base}.")
            return local
        if not local.exists():
            if not self.exists(name):
                raise MissingArtifactError(f"The artifact {name} is not in the store {self.base}.")
            local.parent.mkdir(parents=True, exist_ok=True)
            temporary = local.with_name(f".{local.name}.{uuid.uuid4().hex}")
            self.fs.get(self._remote(name), str(temporary), recursive=True)
            self._settle(temporary, local)
        return local

    @contextmanager
    def create(self, name: str) -> Iterator[Path]:
        """A temporary local path to write a file or make a folder at; on leaving it becomes the artifact.

        Nothing is left where the body raises. Of two writers of one name the first one wins: they wrote the same.
        """
        local = self.cache / name
        local.parent.mkdir(parents=True, exist_ok=True)
        temporary = local.with_name(f".{local.name}.{uuid.uuid4().hex}{UNFINISHED}")
        try:
            yield temporary
            _fsync_tree(temporary)
            self._settle(temporary, local)
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
            raise MissingArtifactError(f"The artifact {name} is not in the store {self.base}.")
        return max(time if time.tzinfo else time.replace(tzinfo=UTC) for time in times)

    def remove(self, name: str) -> None:
        """Remove an artifact; one that is not there is no error. A folder that is half removed is never there."""
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


def _fsync_tree(path: Path) -> None:
    """Push a file, or each file of a folder, to the disk: a rename must not come before the bytes."""
    for file in [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
