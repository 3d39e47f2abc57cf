"""Checkpoint URIs: which ones are allowed, and what a moving one refers to now.

`hf://org/name@main` moves, and so does a folder in an object store. It is resolved to a commit, `hf://org/name@<40 hex
digits>`, or to a listing, `s3://bucket/folder#<digest of names, sizes and versions>`.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import structlog
from fsspec.spec import AbstractFileSystem

from featurewatch.service.checkpoints.contents import ADAPTER_FILES, BESIDE
from featurewatch.service.checkpoints.faults import UnusableError

log = structlog.get_logger("featurewatch.checkpoints")

# Object stores. Neither http (a worker would fetch any address in a request) nor wrapping or chained file systems.
STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "hdfs")
MEMORY = "memory"
"""A store within one process, for tests. It is allowed only if the settings name it."""
HUB_SECONDS = 3.0
FETCHED = ("*.safetensors", *BESIDE)
_HUB = re.compile(r"hf://([A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)(?:@([\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# The first of these that a store reports for a file changes with its content.
_VERSIONS = ("VersionId", "version_id", "ETag", "etag", "generation", "md5Hash", "content_md5")
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")


def check(uri: str, allowed: tuple[str, ...]) -> None:
    """Raise UnusableError `uri-unsupported` or `store-refused` unless a non-local URI may be read.

    `allowed` are the URI prefixes in FEATUREWATCH_STORES.
    """
    scheme, separator, rest = uri.partition("://")
    if scheme == "hf":
        parse_hub(uri)
    elif not separator or not rest or "::" in uri or scheme not in (*STORES, MEMORY):
        known = ", ".join(f"{name}://" for name in ("hf", "file", *STORES))
        raise UnusableError(
            "uri-unsupported",
            f"Unsupported URI {uri!r}. Use {known}, with the prefix activations+ for precomputed activations.",
        )
    if ".." in PurePosixPath(rest).parts or not any(_within(uri, prefix) for prefix in allowed):
        names = ", ".join(allowed) or "none"
        raise UnusableError(
            "store-refused",
            f"{uri!r} is not in an allowed store ({names}). An operator can add it to FEATUREWATCH_STORES on the "
            "server and the workers.",
        )


def parse_hub(uri: str) -> tuple[str, str]:
    """(repository, revision) of a hub URI; the revision defaults to `main`. Raises UnusableError `uri-unsupported`."""
    match = _HUB.fullmatch(uri)
    if match is None:
        raise UnusableError("uri-unsupported", f"Invalid hub URI {uri!r}. The format is hf://org/name@revision.")
    return match[1], match[2] or "main"


def resolve(uri: str, cache_dir: Path) -> str | None:
    """What a moving URI refers to now; None if the hub or the store cannot be reached from this host."""
    if uri.startswith("hf://"):
        return _resolve_hub(uri, cache_dir)
    if "#" in uri:
        return uri  # already resolved; the worker compares the listing
    try:
        fs, files = list_store(uri)
    except (ImportError, OSError, ValueError) as error:
        log.info("store unreachable", uri=uri, error=f"{type(error).__name__}: {error}"[:300])
        return None
    return f"{uri}#{listing_digest(fs, files)}" if files else None


def resolve_within(uri: str, cache_dir: Path, seconds: float) -> str | None:
    """As `resolve`, or None if it takes longer than `seconds`."""
    result: list[str | None] = []
    thread = threading.Thread(target=lambda: result.append(resolve(uri, cache_dir)), name="resolve", daemon=True)
    thread.start()
    thread.join(seconds)
    return result[0] if result else None


def list_store(uri: str) -> tuple[AbstractFileSystem, dict[str, str]]:
    """The file system of a store, and name -> path of the files that a worker reads there."""
    fs, base = fsspec.core.url_to_fs(uri.partition("#")[0])
    base = base.rstrip("/")
    fs.invalidate_cache()
    if base.endswith(".gguf"):
        return fs, {PurePosixPath(base).name: base} if fs.isfile(base) else {}
    files = {PurePosixPath(path).name: path for path in sorted(fs.ls(base, detail=False)) if fs.isfile(path)}
    return fs, {name: path for name, path in files.items() if is_fetched(name)}


def is_fetched(name: str) -> bool:
    """Whether a file is fetched from a hub or store: weights, configuration and tokenizers, never pickles."""
    return name in ADAPTER_FILES or any(PurePosixPath(name).match(pattern) for pattern in FETCHED)


def listing_digest(fs: AbstractFileSystem, files: Mapping[str, str]) -> str:
    """Digest (16 hex digits) over the names, sizes and versions of a store's files."""
    rows = [[name, *_version(fs.info(path))] for name, path in sorted(files.items())]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _version(info: Mapping[str, Any]) -> tuple[int | None, str]:
    """Size, and a value that changes with the content: a version, an ETag or the modification time."""
    keys: tuple[str, ...] = next(((key,) for key in _VERSIONS if info.get(key)), _TIMES)
    return info.get("size"), "|".join(str(info[key]) for key in keys if info.get(key))


def _within(uri: str, prefix: str) -> bool:
    """Whether a URI equals a prefix or is below it: `s3://models` does not allow `s3://models-of-others`."""
    # Not "@" for stores: abfs://container@account is another account.
    ends = ("", "/", "@") if prefix.startswith("hf://") else ("", "/", "#")
    return uri.startswith(prefix) and (prefix.endswith(("/", ":")) or uri[len(prefix) :][:1] in ends)


def _resolve_hub(uri: str, cache_dir: Path) -> str | None:
    name, revision = parse_hub(uri)
    if _COMMIT.fullmatch(revision):
        return f"hf://{name}@{revision}"
    commit = _ask_hub(name, revision, lambda: _cached_commit(name, revision, cache_dir))
    return f"hf://{name}@{commit}" if commit else None


def _ask_hub(name: str, revision: str, cached: Callable[[], str | None]) -> str | None:
    from huggingface_hub import HfApi  # noqa: PLC0415 - takes 0.3 s to import, and few requests need it
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled  # noqa: PLC0415

    try:
        return HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS).sha
    except HfHubHTTPError as error:
        log.info("hub refused the request", model=name, revision=revision, error=str(error)[:300])
    except OfflineModeIsEnabled:
        return cached()
    except Exception as error:  # noqa: BLE001 - the hub's client has used three HTTP libraries so far
        if type(error).__name__ in ("ConnectError", "ConnectionError", "ProxyError"):
            # Without a network, the local cache is the only source.
            commit = cached()
            if commit:
                log.warning("hub unreachable; using the local cache", model=name, revision=revision, commit=commit)
            return commit
        log.info("hub unreachable", model=name, revision=revision, error=f"{type(error).__name__}: {error}"[:300])
    return None


def _cached_commit(name: str, revision: str, cache_dir: Path) -> str | None:
    """The commit of a revision in the hub's local cache."""
    if ".." in revision.split("/"):
        return None
    ref = cache_dir / "hub" / f"models--{name.replace('/', '--')}" / "refs" / revision
    if not ref.is_file():
        return None
    commit = ref.read_text(encoding="ascii", errors="replace").strip()
    return commit if _COMMIT.fullmatch(commit) else None
