"""What can be said of a checkpoint's URI before any worker reads it: is it allowed, is it whole, what does it hold.

Local files are looked at where this host sees them. Where it does not (only the workers mount them), the look is
left to the workers; the roots are held to either way.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from service.checkpoints import manifest, weights
from service.checkpoints.faults import UnusableError
from service.kit.paths import PathRefusedError, resolve_under_roots

ACTIVATIONS = "activations+"
# Object stores. Not http (a worker would fetch any address that a request names), and no wrapping or chained systems.
STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "hdfs")
_HUB = re.compile(r"hf://[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")

WHOLE_UP_TO = 64 * 1024 * 1024
SAMPLES = 16
SAMPLE_BYTES = 1024 * 1024
MAX_FILES = 10_000


@dataclass(frozen=True)
class Expected:
    """What the family knows of its checkpoints already."""

    hook_points: Sequence[str]
    positions: int | None = None
    widths: Mapping[str, int] = field(default_factory=dict)


def look(uri: str, adapter: str | None, roots: tuple[Path, ...], expected: Expected) -> str:
    """Check a checkpoint and its adapter; returns a digest of what it holds. UnusableError where it cannot be one.

    The digest is over file contents where they are in sight (see `content_digest`), else over the URI.
    """
    try:
        return _look(uri, adapter, roots, expected)
    except OSError as error:
        raise UnusableError("model-missing", f"A file cannot be read here: {error.strerror}.") from error


def _look(uri: str, adapter: str | None, roots: tuple[Path, ...], expected: Expected) -> str:
    brought_along = uri.startswith(ACTIVATIONS)
    path = _locate(uri.removeprefix(ACTIVATIONS), roots)
    if brought_along and adapter is not None:
        raise UnusableError("uri-unsupported", "An adapter goes onto a model; these are activations brought along.")
    if brought_along and path is not None:
        if not path.is_dir():
            raise UnusableError("manifest-missing", f"{path.name} is no folder with a manifest.json.")
        manifest.check_activations(
            path, hook_points=expected.hook_points, positions=expected.positions, widths=expected.widths
        )
    elif path is not None:
        weights.check_model(path, expected.hook_points)
    parts = [uri if path is None else content_digest(path)]
    if adapter is not None:
        if adapter.startswith(ACTIVATIONS):
            raise UnusableError("uri-unsupported", "An adapter is a PEFT folder, not activations.")
        folder = _locate(adapter, roots)
        if folder is not None:
            weights.check_adapter(folder)
        parts.append(adapter if folder is None else content_digest(folder))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def content_digest(path: Path) -> str:
    """SHA-256 over names, sizes and contents of a file or of a folder's files (hidden ones left out).

    Files up to 64 MB count whole; of larger ones 16 blocks of 1 MB, evenly spaced from the first to the last: a
    registration must not read 100 GB. Weights that were trained differ in every block.
    """
    files = [path] if path.is_file() else _files(path)
    digest = hashlib.sha256()
    for file in files:
        name = file.name if file == path else file.relative_to(path).as_posix()
        digest.update(f"{name}\0{file.stat().st_size}\0".encode())
        digest.update(_file_digest(file))
    return digest.hexdigest()


def _locate(uri: str, roots: tuple[Path, ...]) -> Path | None:
    """Local path of a URI that may be read; None where this host does not see it."""
    scheme, separator, rest = uri.partition("://")
    if scheme == "file":
        return _local(uri, roots)
    if scheme == "hf":
        if not _HUB.fullmatch(uri):
            raise UnusableError("uri-unsupported", f"{uri!r} names no hub model; one looks like hf://org/name@revision")
        return None
    if not separator or not rest or "::" in uri or scheme not in STORES:
        known = ", ".join(f"{name}://" for name in ("hf", "file", *STORES))
        raise UnusableError(
            "uri-unsupported", f"{uri!r} cannot be read. Known are {known}, and activations+ before file:// or a store."
        )
    return None


def _local(uri: str, roots: tuple[Path, ...]) -> Path | None:
    try:
        path = resolve_under_roots(uri, roots)
    except (PathRefusedError, ValueError) as error:
        raise UnusableError("path-refused", f"{error}.") from error
    if path.exists():
        if path.is_dir():
            # Before anything in it is opened: a link must not lead to a place that could not be named itself.
            for file in _files(path):
                _hold_to_roots(file, roots)
        return path
    # A root that exists here is mounted here, so what it lacks is not there; else only the workers can know.
    if any(path.is_relative_to(root) and root.is_dir() for root in roots):
        raise UnusableError("model-missing", f"{path} does not exist.")
    return None


def _files(folder: Path) -> list[Path]:
    found = []
    for file in folder.rglob("*"):
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts):
            found.append(file)
        if len(found) > MAX_FILES:
            raise UnusableError("model-missing", f"{folder.name} has over {MAX_FILES} files; it is no model folder.")
    return sorted(found)


def _hold_to_roots(file: Path, roots: tuple[Path, ...]) -> None:
    if not any(file.resolve().is_relative_to(root) for root in roots):
        raise UnusableError("path-refused", f"{file.name} is a link that leads out of the configured roots.")


def _file_digest(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_UP_TO:
            return hashlib.file_digest(file, "sha256").digest()
        digest = hashlib.sha256()
        for sample in range(SAMPLES):
            file.seek((size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
        return digest.digest()
