"""Cache folders sealed with the SHA-256 of each file.

A sealed folder is intact as long as it contains exactly the files, byte for byte, that it was sealed with.
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import structlog

from featurewatch.service.kit.digests import sha256_all

log = structlog.get_logger("featurewatch.worker")

DIGESTS = ".digests"
"""The seal: JSON, name -> SHA-256."""


def build(target: Path, fill: Callable[[Path], None]) -> Path:
    """Return the folder `target`, built by `fill` unless it exists and is intact.

    `fill` writes into an empty folder, which is renamed to `target` once it is sealed and on disk. If it raises,
    nothing is left behind.
    """
    if target.is_dir():
        if is_intact(target):
            return target
        log.warning("a cached folder is damaged; rebuilding it", folder=f"{target.parent.name}/{target.name}")
        shutil.rmtree(target, ignore_errors=True)  # another worker may be removing it too
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        fill(temporary)
        seal(temporary)
        try:
            temporary.rename(target)
        except OSError:
            if not is_intact(target):  # otherwise another worker built the same folder first
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def seal(folder: Path) -> None:
    """Record the SHA-256 of each file, and fsync all files."""
    files = _files(folder)
    digests = dict(zip(files, sha256_all(list(files.values())), strict=True))
    (folder / DIGESTS).write_text(json.dumps(digests), encoding="utf-8")
    for path in (*files.values(), folder / DIGESTS, folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_intact(folder: Path) -> bool:
    """Whether a folder is sealed and unchanged since."""
    try:
        digests = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        files = _files(folder)
        return bool(digests == dict(zip(files, sha256_all(list(files.values())), strict=True)))
    except (OSError, ValueError):
        return False


def _files(folder: Path) -> dict[str, Path]:
    """Name -> file, excluding the seal."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != DIGESTS)
    return {path.relative_to(folder).as_posix(): path for path in paths}
