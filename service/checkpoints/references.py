"""URIs of checkpoints: which may be read, and what a moving one stands for now.

`hf://org/name@main` moves, and so does a folder of an object store. What is judged is a commit, `hf://org/name@<40 hex
digits>`, or a listing, `s3://bucket/folder#<digest of names, sizes and versions>`: the resolved reference.
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

# Object stores. Not http (a worker would fetch any address that a request names), and no wrapping or chained systems.
STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "hdfs")
MEMORY = "memory"
"""A store within one process, for tests. It is read only where the settings name it."""
HUB_SECONDS = 3.0
FETCHED = ("*.safetensors", *BESIDE)
_HUB = re.compile(r"hf://([A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)(?:@([\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# The first of these that a store tells of a file changes with its content.
_VERSIONS = ("VersionId", "version_id", "ETag", "etag", "generation", "md5Hash", "content_md5")
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")


def check(uri: str, allowed: tuple[str, ...]) -> None:
    """UnusableError `uri-unsupported` or `store-refused` unless a URI that is not a local path may be read.

    allowed: prefixes of URIs, as FEATUREWATCH_STORES names them.
    """
    scheme, separator, rest = uri.partition("://")
    if scheme == "hf":
        parse_hub(uri)
    elif not separator or not rest or "::" in uri or scheme not in (*STORES, MEMORY):
        known = ", ".join(f"{name}://" for name in ("hf", "file", *STORES))
        raise UnusableError(
            "uri-unsupported", f"{uri!r} cannot be read. Use {known}, or activations+ before file:// or a store."
        )
    if ".." in PurePosixPath(rest).parts or not any(_within(uri, prefix) for prefix in allowed):
        names = ", ".join(allowed) or "none"
        raise UnusableError(
            "store-refused", f"{uri!r} is not in a store that may be read ({names}). An operator can add it to "
            "FEATUREWATCH_STORES on the server and workers."
        )  # fmt: skip


def parse_hub(uri: str) -> tuple[str, str]:
    """(repository, revision) of a hub URI; `main` where it names no revision. UnusableError `uri-unsupported`."""
    match = _HUB.fullmatch(uri)
    if match is None:
        raise UnusableError("uri-unsupported", f"{uri!r} is not a hub model; one looks like hf://org/name@revision")
    return match[1], match[2] or "main"


def resolve(uri: str, cache_dir: Path) -> str | None:
    """What a moving URI stands for now. None where this host cannot tell: the hub or the store does not answer it."""
    if uri.startswith("hf://"):
        return _resolve_hub(uri, cache_dir)
    if "#" in uri:
        return uri  # it names the listing itself, and the worker compares
    try:
        fs, files = list_store(uri)
    except (ImportError, OSError, ValueError) as error:
        log.info("store not reached", uri=uri, error=f"{type(error).__name__}: {error}"[:300])
        return None
    return f"{uri}#{listing_digest(fs, files)}" if files else None


def resolve_within(uri: str, cache_dir: Path, seconds: float) -> str | None:
    """As `resolve`, and None where it takes longer."""
    result: list[str | None] = []
    thread = threading.Thread(target=lambda: result.append(resolve(uri, cache_dir)), name="resolve", daemon=True)
    thread.start()
    thread.join(seconds)
    return result[0] if result else None


def list_store(uri: str) -> tuple[AbstractFileSystem, dict[str, str]]:
    """The file system of a store, and name -> path of the files that a worker would read there."""
    fs, base = fsspec.core.url_to_fs(uri.partition("#")[0])
    base = base.rstrip("/")
    fs.invalidate_cache()
    if base.endswith(".gguf"):
        return fs, {PurePosixPath(base).name: base} if fs.isfile(base) else {}
    found = {PurePosixPath(path).name: path for path in sorted(fs.ls(base, detail=False)) if fs.isfile(path)}
    return fs, {name: path for name, path in found.items() if is_fetched(name)}


def is_fetched(name: str) -> bool:
    """Whether a file is fetched from a hub or store: weights, configuration and tokenizers, and no pickles."""
    return name in ADAPTER_FILES or any(PurePosixPath(name).match(pattern) for pattern in FETCHED)


def listing_digest(fs: AbstractFileSystem, files: Mapping[str, str]) -> str:
    """Digest (16 hex digits) over names, sizes and versions of a store's files."""
    rows = [[name, *_version(fs.info(path))] for name, path in sorted(files.items())]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _version(info: Mapping[str, Any]) -> tuple[int | None, str]:
    """Size, and what changes with the content: a version or an ETag, or else the time of the last change."""
    keys: tuple[str, ...] = next(((key,) for key in _VERSIONS if info.get(key)), _TIMES)
    return info.get("size"), "|".join(str(info[key]) for key in keys if info.get(key))


def _within(uri: str, prefix: str) -> bool:
    """Whether a URI is what a prefix names, or below it: `s3://models` does not allow `s3://models-of-others`."""
    ends = ("", "/", "@") if prefix.startswith("hf://") else ("", "/", "#")  # abfs://container@account is another place
    return uri.startswith(prefix) and (prefix.endswith(("/", ":")) or uri[len(prefix) :][:1] in ends)


def _resolve_hub(uri: str, cache_dir: Path) -> str | None:
    name, revision = parse_hub(uri)
    if _COMMIT.fullmatch(revision):
        return f"hf://{name}@{revision}"
    commit = _ask_hub(name, revision, lambda: _cached_commit(name, revision, cache_dir))
    return f"hf://{name}@{commit}" if commit else None


def _ask_hub(name: str, revision: str, cached: Callable[[], str | None]) -> str | None:
    from huggingface_hub import HfApi  # noqa: PLC0415 - takes a third of a second, and few requests need it
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled  # noqa: PLC0415

    try:
        return HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS).sha
    except HfHubHTTPError as error:
        log.info("hub refused", model=name, revision=revision, error=str(error)[:300])
    except OfflineModeIsEnabled:
        return cached()
    except Exception as error:  # noqa: BLE001 - the hub's client has been built on three HTTP libraries by now
        if type(error).__name__ in ("ConnectError", "ConnectionError", "ProxyError"):
            # No way to the hub at all: an installation without a network, whose cache is all there is.
            commit = cached()
            if commit:
                log.warning("hub not reached; using its local cache", model=name, revision=revision, commit=commit)
            return commit
        log.info("hub not reached", model=name, revision=revision, error=f"{type(error).__name__}: {error}"[:300])
    return None


def _cached_commit(name: str, revision: str, cache_dir: Path) -> str | None:
    """The commit that the hub's cache on this machine knows for a revision."""
    if ".." in revision.split("/"):
        return None
    ref = cache_dir / "hub" / f"models--{name.replace('/', '--')}" / "refs" / revision
    if not ref.is_file():
        return None
    commit = ref.read_text(encoding="ascii", errors="replace").strip()
    return commit if _COMMIT.fullmatch(commit) else None
