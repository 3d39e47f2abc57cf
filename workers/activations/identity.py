"""What was judged is what was read: a checkpoint's files, verified before they are opened and while they are read.

The files are opened through a *view*: a folder with links to exactly the files that were hashed, so that no library
reads another one that happens to lie beside them.
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from service.checkpoints import contents, manifest, references
from service.checkpoints.contents import ACTIVATIONS, ADAPTER, MODEL, Contents
from service.config import Settings
from service.kit.digests import ChangedWhileReadError, Progress
from service.kit.paths import PathRefusedError, hold_to_roots
from workers.activations.sources import locate
from workers.activations.tensorfiles import refusals
from workers.errors import RunError

log = structlog.get_logger("featurewatch.worker")


@dataclass(frozen=True)
class Reference:
    """A registered checkpoint: its URIs as given and as resolved, and what is known of its contents. Plain JSON."""

    uri: str
    adapter: str | None
    resolved_uri: str | None
    resolved_adapter: str | None
    contents: dict[str, Any] | None
    """As registered or, from the first time on that it was read, with digests; None: nothing is known"""
    hook_points: list[str] = field(default_factory=list)
    """Of activations that were brought along: those whose shards are read"""

    @property
    def brought_along(self) -> bool:
        """Whether it is activations instead of a model."""
        return self.uri.startswith(ACTIVATIONS)

    @property
    def title(self) -> str:
        """What it is called: the resolved references."""
        parts = [self.resolved_uri or self.uri, self.resolved_adapter or self.adapter]
        return " + ".join(part for part in parts if part)


class Verified:
    """A checkpoint whose files were hashed. `uri` and `adapter` lead to the view; `roots` is where they may be read.

    Activations that were brought along have none: only our own code reads them, and just the files that were hashed.
    """

    def __init__(self, files: Mapping[str, Path], read: Contents, settings: Settings, *, folder: Path | None) -> None:
        """folder: of activations."""
        self.contents, self._files = read, files
        assert read.digest is not None
        self.digest: str = read.digest
        """SHA-256 over all its files"""
        self.roots = (*settings.root_dirs, settings.cache_dir.resolve())
        self.adapter: str | None = None
        if folder is not None:
            self.uri = ACTIVATIONS + folder.as_uri()
            return
        parts = _link(settings.cache_dir.resolve() / "views", self.digest, files)
        self.uri = parts[MODEL].as_uri()
        self.adapter = parts[ADAPTER].as_uri() if ADAPTER in parts else None

    def recheck(self) -> None:
        """RunError `content-changed` where a file has changed since it was hashed. A few microseconds for each."""
        try:
            now = contents.states(self._files)
        except FileNotFoundError as error:
            raise changed(f"{Path(str(error.filename)).name} is gone") from error
        before = Contents({name: contents.File(file.state) for name, file in self.contents.files.items()})
        if (why := contents.difference(before, now)) is not None:
            raise changed(why)


def changed(why: str) -> RunError:
    """The error of a checkpoint that does not hold what was registered."""
    return RunError(
        "content-changed",
        f"{why} since the checkpoint was registered. Nothing was judged. Put the registered files back and retry the "
        "run, or register these files again (under the same name if this run failed).",
    )


def resolve(reference: Reference, settings: Settings) -> Reference:
    """With both references resolved. RunError `model-unavailable`, `store-refused`, `uri-unsupported`."""
    uri, adapter = reference.resolved_uri, reference.resolved_adapter
    if uri is None:
        uri = _resolve(reference.uri, settings)
    if adapter is None and reference.adapter is not None:
        adapter = _resolve(reference.adapter, settings)
    if (uri, adapter) == (reference.resolved_uri, reference.resolved_adapter):
        return reference
    log.info("resolved", uri=uri, adapter=adapter)
    return Reference(
        reference.uri, reference.adapter, uri, adapter, reference.contents, reference.hook_points
    )  # fmt: skip


@contextmanager
def verified(reference: Reference, settings: Settings, progress: Progress | None = None) -> Iterator[Verified]:
    """A resolved checkpoint, fetched and hashed; on leaving it is looked at once more.

    RunErrors of `sources.locate`, `path-refused`, `store-refused`, those of UnusableError, and `content-changed` where
    it does not hold what is known of it, or stops to do so.
    """
    files = _locate(reference, settings)
    try:
        read = contents.digested(files, progress)
    except ChangedWhileReadError as error:
        raise changed(f"{Path(str(error.filename)).name} was written to while it was read, so it changed") from error
    _check_blobs(files, read)
    known = Contents.from_json(reference.contents or {})
    for part in (MODEL, ADAPTER):
        before = known.part(part)
        if before.files and (why := contents.difference(before, read.part(part))) is not None:
            raise changed(why)
    folder = files[f"{MODEL}/{manifest.FILE}"].parent if reference.brought_along else None
    checkpoint = Verified(files, read, settings, folder=folder)
    yield checkpoint
    checkpoint.recheck()


def _resolve(uri: str, settings: Settings) -> str:
    plain = uri.removeprefix(ACTIVATIONS)
    prefix = uri[: len(uri) - len(plain)]
    if plain.startswith("file:"):
        return uri
    _allowed(plain, settings)
    resolved = references.resolve(plain, settings.cache_dir)
    if resolved is None:
        raise RunError(
            "model-unavailable",
            f"{uri} could not be resolved: the hub or the store did not tell what it stands for now. Check that this "
            "worker reaches it and has the credentials, then retry the run.",
        )
    return prefix + resolved


def _allowed(uri: str, settings: Settings) -> None:
    with refusals():
        references.check(uri, settings.store_prefixes)


def _locate(reference: Reference, settings: Settings) -> dict[str, Path]:
    """The checkpoint's files, by their names in `Contents`."""
    places: list[Path | None] = []
    for uri in (reference.resolved_uri or reference.uri, reference.resolved_adapter or reference.adapter):
        plain = None if uri is None else uri.removeprefix(ACTIVATIONS)
        if plain is not None and not plain.startswith("file:"):
            _allowed(plain, settings)
        places.append(None if plain is None else locate(plain, settings.root_dirs, settings.cache_dir))
    model, adapter = places
    with refusals():
        files = contents.checkpoint_files(reference.uri, model, adapter, reference.hook_points)
    try:
        for file in files.values():
            hold_to_roots(file, (*settings.root_dirs, settings.cache_dir.resolve()))
            if not file.is_file():
                raise RunError("model-missing", f"{file.parent.name} has no {file.name}")
    except PathRefusedError as error:
        raise RunError("path-refused", str(error)) from error
    return files


def _check_blobs(files: Mapping[str, Path], read: Contents) -> None:
    """The hub's cache names a large file by its SHA-256: RunError `download-damaged` where that is another one."""
    for name, path in files.items():
        blob = path.resolve()
        if blob.parent.name == "blobs" and len(blob.name) == 64 and blob.name != read.files[name].sha256:
            with suppress(OSError):  # a read-only cache stays as it is; the message says what to do
                blob.unlink()
                path.unlink()
            raise RunError(
                "download-damaged",
                f"{path.name} in this worker's cache is not what the hub holds (its SHA-256 differs). Retry the run to "
                f"fetch it again; if that fails, remove {blob}.",
            )


def _link(views: Path, digest: str, files: Mapping[str, Path]) -> dict[str, Path]:
    """Part of the checkpoint -> its view: a folder with links to its files, or a single file itself."""
    targets = {name: str(path.resolve()) for name, path in sorted(files.items())}
    key = hashlib.sha256(json.dumps([digest, targets]).encode()).hexdigest()[:20]
    view, parts = views / key, dict[str, Path]()
    for name, path in files.items():
        part, _, inner = name.partition("/")
        # Named as the folder is, for messages.
        home = path.parents[inner.count("/")]
        parts[part] = path if path.suffix == ".gguf" else view / part / home.name
    if view.is_dir():
        return parts
    temporary = views / f".{key}.{uuid.uuid4().hex}"
    for name, target in targets.items():
        part, _, inner = name.partition("/")
        link = temporary / part / parts[part].name / inner
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    try:
        temporary.rename(view)
    except OSError:
        if not view.is_dir():  # else another worker was first, with the same links
            raise
        shutil.rmtree(temporary, ignore_errors=True)
    return parts
