"""From a URI to a local folder of safe files. Pickles are neither fetched nor opened.

`hf://org/name@revision`, `file:///folder`, `file:///model.gguf`, or an object store (`s3://bucket/folder`, `gs://`,
`az://`, ...), each also as `activations+<uri>` for precomputed activations.
"""

import hashlib
import json
from pathlib import Path
from urllib.parse import unquote, urlsplit

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from featurewatch.service.checkpoints import references, weights
from featurewatch.service.checkpoints.contents import ACTIVATIONS
from featurewatch.service.checkpoints.faults import UnusableError
from featurewatch.service.checkpoints.references import FETCHED, is_fetched, list_store, listing_digest, parse_hub
from featurewatch.service.kit.paths import PathRefusedError, hold_to_roots, resolve_under_roots
from featurewatch.workers.activations.sources import sealed
from featurewatch.workers.activations.tensorfiles import refusals
from featurewatch.workers.errors import RunError


def locate(uri: str, roots: tuple[Path, ...], cache_dir: Path) -> Path:
    """Local folder or .gguf file of a URI. Remote files are fetched into `cache_dir`.

    Raises RunError `path-refused`, `model-missing`, `model-unavailable`, `uri-unsupported`.
    """
    uri = uri.removeprefix(ACTIVATIONS)
    if uri.startswith("file:"):
        return _local(uri, roots)
    if uri.startswith("hf://"):
        return _from_hub(uri, cache_dir)
    with refusals():
        references.check(uri, (uri,))  # the caller has checked which stores are allowed
    return _from_store(uri, cache_dir)


def _local(uri: str, roots: tuple[Path, ...]) -> Path:
    try:
        path = resolve_under_roots(uri, roots)
        if not path.exists():
            raise RunError("model-missing", f"{uri} does not exist on the worker.")
        if path.is_dir():
            for file in path.iterdir():
                if file.is_symlink():
                    hold_to_roots(file, roots)
    except PathRefusedError as error:
        raise RunError("path-refused", str(error)) from error
    # A single file keeps its given name, because it may link to an open descriptor.
    return Path(unquote(urlsplit(uri).path)) if path.is_file() else path


def _from_hub(uri: str, cache_dir: Path) -> Path:
    try:
        name, revision = parse_hub(uri)
        folder = snapshot_download(name, revision=revision, allow_patterns=list(FETCHED), cache_dir=cache_dir / "hub")
    except (UnusableError, HFValidationError) as error:
        raise RunError("uri-unsupported", f"{uri!r} is not a hub model: {error}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise RunError("model-unavailable", f"{uri} could not be fetched from the hub: {error}") from error
    return Path(folder)


def _from_store(uri: str, cache_dir: Path) -> Path:
    """Copy a folder (safe files only) or a .gguf file into a cache folder named after the store's listing."""
    plain, _, expected = uri.partition("#")
    try:
        fs, files = list_store(plain)
        if not files:
            raise RunError("model-missing", f"{plain} contains no safetensors, JSON or GGUF files.")
        listing = listing_digest(fs, files)
        if expected and listing != expected:
            raise RunError(
                "content-changed",
                f"{plain} has changed since it was registered (listing {expected}, now {listing}). Register it again "
                "under another name.",
            )
        target = cache_dir / "fetched" / hashlib.sha256(f"{plain}#{listing}".encode()).hexdigest()[:20]

        def fill(folder: Path) -> None:
            for name, path in files.items():
                fs.get_file(path, str(folder / name))
            fs.invalidate_cache()
            if listing_digest(fs, files) != listing:
                raise RunError(
                    "content-changed", f"{plain} changed while it was fetched. Retry when the upload is complete."
                )

        sealed.build(target, fill)
    except ImportError as error:
        raise RunError("uri-unsupported", f"{uri} requires a package that is not installed: {error}") from error
    except (OSError, ValueError) as error:
        raise RunError("model-unavailable", f"{uri} could not be read: {error}") from error
    return target / next(iter(files)) if plain.rstrip("/").endswith(".gguf") else target


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files with a model's weights.

    Raises RunError `unsafe-format`, `weights-missing`, `truncated-file`, `shard-missing`, `path-escapes`.
    """
    with refusals():
        return weights.weight_files(folder)


def safe_files(path: Path) -> list[Path]:
    """The files of a folder that may be opened, sorted; or the single file."""
    return [path] if path.is_file() else sorted(file for file in path.iterdir() if is_fetched(file.name))


def fingerprint(path: Path) -> str:
    """Digest over names, sizes and modification times of a folder's safe files, or of a single file."""
    state = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in safe_files(path)]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:20]
