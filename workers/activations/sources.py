"""From a URI to a local folder of safe files. Pickles are never fetched and never opened.

`hf://org/name@revision`, `file:///folder`, `file:///model.gguf`, or an object store (`s3://bucket/folder`, `gs://`,
`az://`, ...), each also as `activations+<uri>` for activations brought along.
"""

import hashlib
import json
import re
import shutil
import uuid
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import fsspec
from fsspec.spec import AbstractFileSystem
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from service.kit.paths import PathRefusedError, resolve_under_roots
from workers.activations.tensorfiles import read_header
from workers.errors import RunError

# Weights, configuration, tokenizers. Nothing here can run code when it is read.
SAFE_FILES = ("*.safetensors", "*.json", "*.model", "merges.txt", "vocab.txt")
# Object stores; not http (a worker would fetch whatever address a request names) and no chained or wrapping systems.
STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "hdfs", "memory")
ACTIVATIONS_PREFIX = "activations+"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def locate(uri: str, roots: tuple[Path, ...], cache_dir: Path) -> Path:
    """Local folder, or local .gguf file, with what the URI names; fetched into `cache_dir` where it is elsewhere.

    RunError `path-refused`, `model-missing`, `model-unavailable`, `uri-unsupported`.
    """
    if uri.startswith("file:"):
        return _local(uri, roots)
    if uri.startswith("hf://"):
        return _from_hub(uri, cache_dir)
    scheme = uri.partition("://")[0]
    if scheme not in STORES or "::" in uri or "://" not in uri:
        known = ", ".join(f"{name}://" for name in ("hf", "file", *STORES[:-1]))
        raise RunError("uri-unsupported", f"{uri!r} cannot be read; known are {known}")
    return _from_store(uri, cache_dir)


def locate_activations(uri: str, roots: tuple[Path, ...], cache_dir: Path) -> Path:
    """Local folder of `activations+<uri>`. RunErrors of `locate`."""
    return locate(uri.removeprefix(ACTIVATIONS_PREFIX), roots, cache_dir)


def _local(uri: str, roots: tuple[Path, ...]) -> Path:
    try:
        path = resolve_under_roots(uri, roots)
        if not path.exists():
            raise RunError("model-missing", f"{uri} does not exist on the worker")
        if path.is_dir():
            # A link inside the folder must not lead to a place that could not be named itself.
            for file in path.iterdir():
                if file.is_symlink():
                    resolve_under_roots(f"file://{quote(str(file))}", roots)
    except PathRefusedError as error:
        raise RunError("path-refused", str(error)) from error
    return path


def _from_hub(uri: str, cache_dir: Path) -> Path:
    name, _, revision = uri.removeprefix("hf://").strip("/").partition("@")
    if not _HUB_ID.fullmatch(name):
        raise RunError("uri-unsupported", f"{uri!r} names no hub model; one looks like hf://org/name@revision")
    try:
        folder = snapshot_download(
            name, revision=revision or None, allow_patterns=list(SAFE_FILES), cache_dir=cache_dir / "hub"
        )
    except HFValidationError as error:
        raise RunError("uri-unsupported", f"{uri!r} names no hub model: {error}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise RunError("model-unavailable", f"{uri} could not be fetched from the hub: {error}") from error
    return Path(folder)


def _from_store(uri: str, cache_dir: Path) -> Path:
    """Copy a folder (safe files only) or a .gguf file; its name in the cache says what the store held."""
    try:
        fs, base = fsspec.core.url_to_fs(uri)
        files = _wanted(fs, base.rstrip("/"))
        if not files:
            raise RunError("model-missing", f"{uri} holds no safetensors, JSON or GGUF files")
        state = json.dumps([uri, *([name, str(fs.ukey(path))] for name, path in files.items())])
        target = cache_dir / "fetched" / hashlib.sha256(state.encode()).hexdigest()[:20]
        if not target.exists():
            _copy(fs, files, target)
    except ImportError as error:
        raise RunError("uri-unsupported", f"{uri} needs a package that is not installed: {error}") from error
    except (OSError, ValueError) as error:
        raise RunError("model-unavailable", f"{uri} could not be read: {error}") from error
    return target / next(iter(files)) if base.endswith(".gguf") else target


def _wanted(fs: AbstractFileSystem, base: str) -> dict[str, str]:
    """Name -> path of the files to copy."""
    if base.endswith(".gguf"):
        return {PurePosixPath(base).name: base} if fs.isfile(base) else {}
    found = {PurePosixPath(path).name: path for path in sorted(fs.ls(base, detail=False)) if fs.isfile(path)}
    return {name: path for name, path in found.items() if any(PurePosixPath(name).match(kind) for kind in SAFE_FILES)}


def _copy(fs: AbstractFileSystem, files: dict[str, str], target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        for name, path in files.items():
            fs.get_file(path, str(temporary / name))
        if not target.exists():
            temporary.rename(target)
    except OSError:
        if not target.exists():  # else another worker was first; it copied the same
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files with a model's weights, their headers checked.

    RunError `model-missing`, `unsafe-format`, `weights-missing`, `truncated-file`.
    """
    if not (folder / "config.json").is_file():
        raise RunError("model-missing", f"{folder.name} holds no config.json; it is no Hugging Face model folder")
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    elif index.is_file():
        files = _indexed(index)
    else:
        refuse_pickles(folder)
        raise RunError("weights-missing", f"{folder.name} holds no model.safetensors")
    for file in files:
        read_header(file)
    return files


def refuse_pickles(folder: Path) -> None:
    """RunError `unsafe-format` that names the pickles of a folder, if it has any."""
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise RunError(
            "unsafe-format",
            f"{', '.join(pickles[:3])}: pickles can run code when they are opened and are refused; "
            "save the model with safetensors",
        )


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError("truncated-file", f"{index.name} is damaged: {error}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise RunError("path-escapes", f"{index.name} names {name!r}, which leads out of the folder")
        if not name.endswith(".safetensors"):
            raise RunError("unsafe-format", f"{index.name} names {name!r}, which is no safetensors file")
        if not (index.parent / name).is_file():
            raise RunError("shard-missing", f"{index.name} names {name!r}, which is not there")
    return [index.parent / name for name in names]


def fingerprint(path: Path) -> str:
    """Digest over names, sizes and times of a folder's safe files, or of one file."""
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if any(f.match(kind) for kind in SAFE_FILES))
    state = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:20]
