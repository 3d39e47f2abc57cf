"""Checks a registration before any worker reads it: is access allowed, are the files complete, what do they refer to.

Local files are inspected if this host can see them; otherwise the workers check them. The roots and the allowed stores
apply either way. Every check here is fast, whatever a folder holds: large files are hashed by the worker.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from featurewatch.service.checkpoints import contents, manifest, references, weights
from featurewatch.service.checkpoints.contents import ACTIVATIONS, Contents
from featurewatch.service.checkpoints.faults import UnusableError
from featurewatch.service.config import Settings
from featurewatch.service.kit.digests import ChangedWhileReadError
from featurewatch.service.kit.paths import PathRefusedError, resolve_under_roots

HASHED_AT_ONCE = 16 * 1024 * 1024
"""Checkpoints up to this many bytes are hashed during registration, which takes about ten milliseconds."""
RESOLVE_SECONDS = 4.0


@dataclass(frozen=True)
class Expected:
    """What the family requires of a new checkpoint. `widths` maps hook points to their width."""

    hook_points: Sequence[str]
    positions: int | None = None
    widths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Examined:
    """What a registration refers to, as far as this host can tell."""

    hook_points: list[str]
    uri: str | None
    """The resolved reference; None if the worker has to resolve it."""
    adapter: str | None
    files: Mapping[str, Path]
    """Local files that this host can see, by their names in `Contents`."""
    contents: Contents
    """States of the files, and their digests if the files are small."""


def inspect(uri: str, adapter: str | None, settings: Settings, expected: Expected) -> Examined:
    """Check a checkpoint and its adapter and resolve moving references. Raises UnusableError if they are unusable."""
    try:
        return _inspect(uri, adapter, settings, expected)
    except ChangedWhileReadError as error:
        raise UnusableError(
            "content-changed", f"{error}. Register the checkpoint again when its files are complete."
        ) from error
    except OSError as error:
        raise UnusableError("model-missing", f"Cannot read a file: {error.strerror}.") from error


def _inspect(uri: str, adapter: str | None, settings: Settings, expected: Expected) -> Examined:
    precomputed = uri.startswith(ACTIVATIONS)
    if adapter is not None and precomputed:
        raise UnusableError(
            "uri-unsupported", "An adapter needs a model; it cannot be applied to precomputed activations."
        )
    if adapter is not None and adapter.startswith(ACTIVATIONS):
        raise UnusableError("uri-unsupported", "An adapter must be a PEFT folder, not activations.")
    model, resolved = _locate(uri.removeprefix(ACTIVATIONS), settings)
    folder, resolved_adapter = _locate(adapter, settings) if adapter is not None else (None, None)
    if precomputed and model is not None and not model.is_dir():
        raise UnusableError("manifest-missing", f"{model.name} must be a folder with a manifest.json.")
    files = contents.checkpoint_files(uri, model, folder, expected.hook_points, weights.REQUEST_BYTES)
    contents.check_links(files, settings.root_dirs)
    if model is not None and precomputed:
        manifest.check_activations(
            model, hook_points=expected.hook_points, positions=expected.positions, widths=expected.widths
        )
    elif model is not None:
        weights.check_model(model, expected.hook_points)
    if folder is not None:
        weights.check_adapter(folder)
    current = contents.states(files)
    if current.size <= HASHED_AT_ONCE:
        current = contents.digested(files)
    prefix = ACTIVATIONS if precomputed and resolved is not None else ""
    return Examined(list(expected.hook_points), resolved and prefix + resolved, resolved_adapter, files, current)


def _locate(uri: str, settings: Settings) -> tuple[Path | None, str | None]:
    """(local path, resolved reference) of an allowed URI; None for whatever this host cannot see."""
    if uri.startswith("file:"):
        return _local(uri, settings.root_dirs), uri
    references.check(uri, settings.store_prefixes)
    return None, references.resolve_within(uri, settings.cache_dir, RESOLVE_SECONDS)


def _local(uri: str, roots: tuple[Path, ...]) -> Path | None:
    try:
        path = resolve_under_roots(uri, roots)
    except (PathRefusedError, ValueError) as error:
        raise UnusableError("path-refused", f"{error}.") from error
    if path.exists():
        if path.is_dir():
            # Before any file is opened: a link must not lead outside the roots.
            contents.check_links({file.name: file for file in path.iterdir() if file.is_symlink()}, roots)
        return path
    # A root that exists here is mounted here, so the path is missing. Otherwise only the workers can tell.
    if any(path.is_relative_to(root) and root.is_dir() for root in roots):
        raise UnusableError("model-missing", f"{path} does not exist.")
    return None
