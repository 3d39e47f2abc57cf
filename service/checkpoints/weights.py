"""Checks the structure of a model on disk without loading it: Hugging Face folders, GGUF files, PEFT adapters.

The API checks at registration, within a budget; the worker checks before loading, without one.
"""

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from featurewatch.service.checkpoints import adapters, gguf
from featurewatch.service.checkpoints.faults import UnusableError
from featurewatch.service.checkpoints.jsonfile import MAX_JSON_BYTES, read_json
from featurewatch.service.checkpoints.sizes import Census, check_config, layer_count
from featurewatch.service.checkpoints.tensorfile import header_length, read_header
from featurewatch.service.kit.digests import FileState
from featurewatch.service.kit.hook_points import KINDS, layer_of, ranges

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
# Header bytes parsed during a request: 6,000 tensors in 50 ms. A model of 70 billion weights has 70 kB of headers; the
# headers of the largest mixtures of experts are left to the worker.
REQUEST_BYTES = 500_000
# Strings of a GGUF vocabulary parsed during a request: 0.1 s. Larger vocabularies are left to the worker.
REQUEST_TEXTS = 150_000
# Configs have a few kilobytes, or a megabyte with names of quantised modules; the latter are left to the worker.
REQUEST_CONFIG_BYTES = 300_000
# The longest index on the hub has 9 MB (DeepSeek V3: 91,991 tensors in 163 files).
MAX_INDEX_BYTES = 20_000_000
MAX_FILES = 1_000
_NAMED = re.compile(rb'"([\x20-\x21\x23-\x5b\x5d-\x7e]+\.safetensors)"')
# Limits the requests that parse files at the same time: each takes up to 20 MB. Two, so that a hanging file system
# does not block all registrations.
looks = threading.BoundedSemaphore(2)


def check_model(path: Path, hook_points: Sequence[str]) -> None:
    """Check a model folder or .gguf file during a request. Raises UnusableError."""
    with looks:
        if path.is_dir():
            check_folder(path, hook_points, budget=REQUEST_BYTES)
        elif path.suffix == ".gguf":
            with suppress(gguf.OverBudgetError):
                _check_layers(gguf.layer_count(gguf.check_gguf(path, budget=REQUEST_TEXTS)), hook_points)
        elif path.suffix in _PICKLES:
            raise UnusableError("unsafe-format", _pickle_text([path.name]))
        else:
            raise UnusableError(
                "model-missing",
                f"{path.name} is not a model. Name a folder with config.json and safetensors files, or a .gguf file.",
            )


def check_folder(folder: Path, hook_points: Sequence[str] = (), *, budget: int | None = None) -> Census:
    """Check a Hugging Face folder: config, complete safetensors files that match it, no references to other places.

    Returns the totals of the headers. Headers of more than `budget` bytes are not parsed, and the census is empty.
    """
    if (folder / adapters.CONFIG).is_file():
        # transformers would apply it and load the base model that it names.
        raise UnusableError(
            "adapter-unsupported",
            f"{folder.name} contains an {adapters.CONFIG}. Name a folder without one as the model, and the adapter's "
            "own folder as the checkpoint's adapter.",
        )
    if not (folder / "config.json").is_file():
        gguf_files = sorted(file.name for file in folder.glob("*.gguf"))
        hint = f" To use a GGUF file, name the file itself: file://.../{gguf_files[0]}" if gguf_files else ""
        raise UnusableError(
            "model-missing", f"{folder.name} is not a Hugging Face model folder: it has no config.json.{hint}"
        )
    files = weight_files(folder, budget)
    if budget is not None and REQUEST_CONFIG_BYTES < (folder / "config.json").stat().st_size <= MAX_JSON_BYTES:
        return Census()
    config = read_json(folder / "config.json")
    _check_layers(layer_count(config), hook_points)
    _check_references(config)
    census = Census()
    if not _within(files, budget):
        return census
    for file in files:
        for name, tensor in read_header(file).items():
            census.add(name, tensor.shape)
    check_config(config, census, "config.json")
    return census


def check_adapter(folder: Path) -> None:
    """Check the config and weights of a PEFT adapter during a request. Raises UnusableError."""
    with looks:
        read_adapter(folder, budget=REQUEST_BYTES)


def read_adapter(folder: Path, *, budget: int | None = None) -> adapters.AdapterConfig:
    """Check a PEFT adapter and return its config. `budget`: see `check_folder`."""
    weights = folder / adapters.WEIGHTS
    if (folder / adapters.CONFIG).is_file() and not weights.is_file():
        _refuse_pickles(folder)
        raise UnusableError("adapter-missing", f"{folder.name} has no {weights.name}.")
    config = adapters.read_config(folder)
    if _within([weights], budget):
        adapters.check_ranks(config, read_header(weights))
    return config


def member(folder: Path, name: str) -> Path:
    """Path of a safetensors file that a manifest or index names. It must be inside the folder."""
    if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UnusableError("path-escapes", f"{name!r} is outside the folder {folder.name}.")
    if not name.endswith(".safetensors"):
        raise UnusableError("unsafe-format", f"{name!r} is not a safetensors file; no other format is opened.")
    file = folder / name
    if not file.is_file():
        raise UnusableError("shard-missing", f"{folder.name} refers to {name!r}, which does not exist.")
    return file


def _check_layers(layers: int | None, hook_points: Sequence[str]) -> None:
    if layers is None:
        return
    beyond = [name for name in hook_points if layer_of(name) >= layers]
    if beyond:
        available = ranges(f"{kind}.{layer}" for kind in KINDS for layer in (0, layers - 1))
        raise UnusableError(
            "unknown-hook-point",
            f"Unknown hook point {', '.join(beyond)}: the model has {layers} layers. Available: {available}.",
        )


def _within(files: Sequence[Path], budget: int | None) -> bool:
    """Whether the headers of the files fit the budget. Their lengths are checked either way."""
    return sum(map(header_length, files)) <= budget if budget is not None else True


def weight_files(folder: Path, budget: int | None = None) -> list[Path]:
    """Files with a model's weights. An index larger than `budget` is searched for file names instead of parsed."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        if budget is not None and budget < index.stat().st_size <= MAX_INDEX_BYTES:
            return _members(folder, index, _names_in(index, FileState.of(index)))
        return _indexed(folder, index)
    _refuse_pickles(folder)
    raise UnusableError("weights-missing", f"{folder.name} contains no model.safetensors.")


@lru_cache(maxsize=16)
def _names_in(index: Path, state: FileState) -> frozenset[str]:
    """File names in an index. Cached, because a request checks the files and then lists them."""
    return frozenset(name.decode() for name in _NAMED.findall(index.read_bytes()))


def _indexed(folder: Path, index: Path) -> list[Path]:
    shards = read_json(index, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise UnusableError("truncated-file", f"{index.name} has no valid weight_map.")
    return _members(folder, index, frozenset(shards.values()))


def _members(folder: Path, index: Path, names: frozenset[str]) -> list[Path]:
    if len(names) > MAX_FILES:
        raise UnusableError("too-large", f"{index.name} lists {len(names):,} files; the limit is {MAX_FILES:,}.")
    return [member(folder, name) for name in sorted(names)]


def _check_references(config: dict[str, Any]) -> None:
    """Refuse kernels and backbones on the hub, which transformers would download because a config names them."""
    for part in _objects(config):
        for key in ("attn_implementation", "_attn_implementation", "experts_implementation", "backbone"):
            value = part.get(key)
            choices = value.values() if isinstance(value, dict) else [value]
            for name in choices:
                if isinstance(name, str) and (key == "backbone" or "/" in name):
                    raise UnusableError(
                        "path-escapes", f"config.json sets {key} to {name[:100]!r}, which is outside the folder."
                    )


def _objects(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A JSON object and all objects nested in it."""
    stack: list[Any] = [config]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            yield part
        members = part.values() if isinstance(part, dict) else part
        stack += [member for member in members if isinstance(member, dict | list)]


def _refuse_pickles(folder: Path) -> None:
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise UnusableError("unsafe-format", _pickle_text(pickles))


def _pickle_text(names: Sequence[str]) -> str:
    return (
        f"{', '.join(names[:3])}: pickle files can execute arbitrary code and are never loaded. "
        "Save the model as safetensors."
    )
