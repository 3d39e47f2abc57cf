"""Identity: a checkpoint's files are verified before and after they are read, so that verdicts describe those files.

Each file is opened once. It is hashed, and read by libraries, through the same descriptor (by its name in /proc), so
files that replace it or lie beside it are never read.
"""

import hashlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from featurewatch.service.checkpoints import contents, manifest, references
from featurewatch.service.checkpoints.contents import ACTIVATIONS, ADAPTER, MODEL, Contents
from featurewatch.service.config import Settings
from featurewatch.service.kit.digests import ChangedWhileReadError, Progress
from featurewatch.service.kit.paths import PathRefusedError, hold_to_roots
from featurewatch.workers.activations.sources.fetch import locate
from featurewatch.workers.activations.tensorfiles import refusals
from featurewatch.workers.errors import RunError

log = structlog.get_logger("featurewatch.worker")

MOST_OPEN = 400
"""Maximum files to hold open: a process can often open 1,024, and a model of 2 TB has about 200."""
STALE_SECONDS = 7 * 86400.0


@dataclass(frozen=True)
class Reference:
    """A registered checkpoint: its URIs, as given and as resolved, and its known contents. JSON-serialisable."""

    uri: str
    adapter: str | None
    resolved_uri: str | None
    resolved_adapter: str | None
    contents: dict[str, Any] | None
    """As registered; with digests once it has been read. None if unknown"""
    hook_points: list[str] = field(default_factory=list)
    """For precomputed activations: the hook points whose shards are read"""

    @property
    def precomputed(self) -> bool:
        """Whether it is a folder of precomputed activations instead of a model."""
        return self.uri.startswith(ACTIVATIONS)

    @property
    def title(self) -> str:
        """The resolved references, for display."""
        parts = [self.resolved_uri or self.uri, self.resolved_adapter or self.adapter]
        return " + ".join(part for part in parts if part)


@dataclass(frozen=True)
class Verified:
    """A checkpoint whose files have been hashed and are held open."""

    uri: str
    """Of a folder with links to the open files. For precomputed activations, of their own folder: only our code reads
    them, from `files`."""
    adapter: str | None
    roots: tuple[Path, ...]
    """Folders that these URIs may be read from"""
    files: Mapping[str, Path]
    """The open files, by their names in `Contents`"""
    contents: Contents
    digest: str
    """SHA-256 over all files"""

    def recheck(self) -> None:
        """Raise RunError `content-changed` if a file was modified since it was hashed. Takes microseconds per file."""
        now = contents.states(self.files)
        before = Contents({name: contents.File(file.state) for name, file in self.contents.files.items()})
        if (why := contents.difference(before, now)) is not None:
            raise changed(why)


def changed(why: str) -> RunError:
    """The error for a checkpoint that differs from what was registered."""
    return RunError(
        "content-changed",
        f"{why} since the checkpoint was registered. Nothing was judged. Restore the registered files and retry the "
        "run, or register the new files (under the same name if this run failed).",
    )


def resolve(reference: Reference, settings: Settings) -> Reference:
    """Resolve both URIs. Raises RunError `model-unavailable`, `store-refused`, `uri-unsupported`."""
    uri, adapter = reference.resolved_uri, reference.resolved_adapter
    if uri is None:
        uri = _resolve(reference.uri, settings)
    if adapter is None and reference.adapter is not None:
        adapter = _resolve(reference.adapter, settings)
    if (uri, adapter) == (reference.resolved_uri, reference.resolved_adapter):
        return reference
    log.info("resolved", uri=uri, adapter=adapter)
    return replace(reference, resolved_uri=uri, resolved_adapter=adapter)


@contextmanager
def verified(reference: Reference, settings: Settings, progress: Progress | None = None) -> Iterator[Verified]:
    """Fetch and hash a resolved checkpoint, and check on exit that it is unchanged.

    Raises the RunErrors of `locate`, `path-refused`, `store-refused`, those of UnusableError, and `content-changed` if
    the files differ from the known contents or change while they are read.
    """
    located = _locate(reference, settings)
    titles = {name.partition("/")[0]: _title(name, path) for name, path in located.items()}
    allowed = (*settings.root_dirs, settings.cache_dir.resolve())
    with ExitStack() as stack:
        files = {name: stack.enter_context(_held_open(path, allowed, len(located))) for name, path in located.items()}
        try:
            read = contents.digested(files, progress)
        except ChangedWhileReadError as error:
            raise changed(str(error)) from error
        _check_blobs(located, read, settings)
        known = Contents.from_json(reference.contents or {})
        for part in (MODEL, ADAPTER):
            before = known.part(part)
            if before.files and (why := contents.difference(before, read.part(part))) is not None:
                raise changed(why)
        if reference.precomputed:
            parts = {MODEL: located[f"{MODEL}/{manifest.FILE}"].parent}
        else:
            parts = stack.enter_context(_view(files, titles, settings.cache_dir.resolve() / "views"))
        assert read.digest is not None
        checkpoint = Verified(
            uri=(ACTIVATIONS if reference.precomputed else "") + parts[MODEL].as_uri(),
            adapter=parts[ADAPTER].as_uri() if ADAPTER in parts else None,
            roots=allowed,
            files=files,
            contents=read,
            digest=read.digest,
        )
        yield checkpoint
        checkpoint.recheck()


def _resolve(uri: str, settings: Settings) -> str:
    plain = uri.removeprefix(ACTIVATIONS)
    prefix = uri[: len(uri) - len(plain)]
    if plain.startswith("file:"):
        return uri
    with refusals():
        references.check(plain, settings.store_prefixes)
    resolved = references.resolve(plain, settings.cache_dir)
    if resolved is None:
        raise RunError(
            "model-unavailable",
            f"{uri} could not be resolved. Check that this worker can reach the hub or the store and has the required "
            "credentials, then retry the run.",
        )
    return prefix + resolved


def _locate(reference: Reference, settings: Settings) -> dict[str, Path]:
    """The checkpoint's files, by their names in `Contents`."""
    paths: list[Path | None] = []
    for uri in (reference.resolved_uri or reference.uri, reference.resolved_adapter or reference.adapter):
        plain = None if uri is None else uri.removeprefix(ACTIVATIONS)
        if plain is not None and not plain.startswith("file:"):
            with refusals():
                references.check(plain, settings.store_prefixes)
        paths.append(None if plain is None else locate(plain, settings.root_dirs, settings.cache_dir))
    model, adapter = paths
    with refusals():
        files = contents.checkpoint_files(reference.uri, model, adapter, reference.hook_points)
    for file in files.values():
        if not file.is_file():
            raise RunError("model-missing", f"{file.parent.name} has no {file.name}.")
    return files


def _title(name: str, path: Path) -> str:
    """Name of the folder that a file belongs to, or of the single file."""
    return path.name if path.suffix == ".gguf" else path.parents[name.count("/") - 1].name


@contextmanager
def _held_open(path: Path, allowed: tuple[Path, ...], count: int) -> Iterator[Path]:
    """A path that leads to this very file while the block lasts, even if another file takes its name.

    Without /proc, or with more files than a process may open, it is the file's own path. Raises RunError `path-refused`
    if the opened file is outside the allowed folders.
    """
    with path.open("rb") as file:
        descriptor = Path(f"/proc/self/fd/{file.fileno()}")
        held = descriptor if descriptor.exists() and count <= MOST_OPEN else path
        try:
            hold_to_roots(held, allowed)
        except PathRefusedError as error:
            raise RunError("path-refused", str(error).replace(str(held), str(path))) from error
        if held is not path:
            yield held
            return
    yield path


@contextmanager
def _view(files: Mapping[str, Path], titles: Mapping[str, str], views: Path) -> Iterator[dict[str, Path]]:
    """Part of a checkpoint -> a folder with links to its open files, or a link to its single file."""
    views.mkdir(parents=True, exist_ok=True)
    _clear(views)
    with tempfile.TemporaryDirectory(dir=views) as view:
        parts = {part: Path(view, part, title) for part, title in titles.items()}
        for name, path in files.items():
            part, _, inner = name.partition("/")
            link = parts[part] if parts[part].suffix == ".gguf" else parts[part] / inner
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
        yield parts


def _clear(views: Path) -> None:
    """Remove views of killed workers, whose links lead nowhere."""
    for view in views.iterdir():
        with suppress(OSError):
            if time.time() - view.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(view)


def _check_blobs(files: Mapping[str, Path], read: Contents, settings: Settings) -> None:
    """Check files of the hub's cache, which are named after their digests. Raises RunError `download-damaged`.

    Large files are named after their SHA-256, others after git's SHA-1 of a blob.
    """
    for name, path in files.items():
        blob = path.resolve()
        if blob.parent.name != "blobs":
            continue
        if len(blob.name) == 64:
            intact = blob.name == read.files[name].sha256
        elif len(blob.name) == 40:
            data = blob.read_bytes()
            intact = blob.name == hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        else:
            continue
        if not intact:
            if blob.is_relative_to(settings.cache_dir.resolve()):  # in our own cache; any other belongs to its owner
                blob.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
            raise RunError(
                "download-damaged",
                f"{path.name} in the hub's cache does not match its digest. Retry the run to download it again; if "
                f"that fails, remove {blob}.",
            )
