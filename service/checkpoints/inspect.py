"""What can be said of a registration before any worker reads it: may it be read, is it whole, what does it refer to.

Local files are inspected where this host sees them. Where only the workers mount them, they are left to the workers;
the roots and the allowed stores apply either way. Nothing here takes long, whatever a folder holds: digests of large
files are left to the worker.
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
"""Bytes of a checkpoint that is hashed while its registration waits: some ten milliseconds."""
RESOLVE_SECONDS = 4.0


@dataclass(frozen=True)
class Expected:
    """What the family knows of its checkpoints already."""

    hook_points: Sequence[str]
    positions: int | None = None
    widths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Examined:
    """What a registration refers to, as far as this host can tell."""

    hook_points: list[str]
    uri: str | None
    """The resolved reference; None: it is left to the worker"""
    adapter: str | None
    files: Mapping[str, Path]
    """Local files in sight, by their names in `Contents`"""
    contents: Contents
    """Their states, and their digests where the files are small"""


def look(uri: str, adapter: str | None, settings: Settings, expected: Expected) -> Examined:
    """Check a checkpoint and its adapter, and resolve what moves. UnusableError where it cannot be a checkpoint."""
    try:
        return _look(uri, adapter, settings, expected)
    except ChangedWhileReadError as error:
        raise UnusableError("content-changed", f"{error}; register the checkpoint when its files are whole.") from error
    except OSError as error:
        raise UnusableError("model-missing", f"A file cannot be read here: {error.strerror}.") from error


def _look(uri: str, adapter: str | None, settings: Settings, expected: Expected) -> Examined:
    brought_along = uri.startswith(ACTIVATIONS)
    if adapter is not None and brought_along:
        raise UnusableError("uri-unsupported", "An adapter goes onto a model; these are activations brought along.")
    if adapter is not None and adapter.startswith(ACTIVATIONS):
        raise UnusableError("uri-unsupported", "An adapter is a PEFT folder, not activations.")
    model, resolved = _locate(uri.removeprefix(ACTIVATIONS), settings)
    folder, resolved_adapter = _locate(adapter, settings) if adapter is not None else (None, None)
    if brought_along and model is not None and not model.is_dir():
        raise UnusableError("manifest-missing", f"{model.name} is not a folder with a manifest.json.")
    files = contents.checkpoint_files(uri, model, folder, expected.hook_points, weights.REQUEST_BYTES)
    contents.check_links(files, settings.root_dirs)
    if model is not None and brought_along:
        manifest.check_activations(
            model, hook_points=expected.hook_points, positions=expected.positions, widths=expected.widths
        )
    elif model is not None:
        weights.check_model(model, expected.hook_points)
    if folder is not None:
        weights.check_adapter(folder)
    found = contents.states(files)
    if found.size <= HASHED_AT_ONCE:
        found = contents.digested(files)
    prefix = ACTIVATIONS if brought_along and resolved is not None else ""
    return Examined(list(expected.hook_points), resolved and prefix + resolved, resolved_adapter, files, found)


def _locate(uri: str, settings: Settings) -> tuple[Path | None, str | None]:
    """(local path, resolved reference) of a URI that may be read; None for what this host does not see."""
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
            # Before anything in it is opened: a link must not lead to a place that could not be named itself.
            contents.check_links({file.name: file for file in path.iterdir() if file.is_symlink()}, roots)
        return path
    # A root that exists here is mounted here, so what it lacks is not there; else only the workers can know.
    if any(path.is_relative_to(root) and root.is_dir() for root in roots):
        raise UnusableError("model-missing", f"{path} does not exist.")
    return None
