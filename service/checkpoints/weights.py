"""A structural look at a model on disk: Hugging Face folders, GGUF files, PEFT adapters. Nothing is loaded."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.checkpoints.faults import UnusableError
from service.checkpoints.tensorfile import read_header

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_KINDS = ("resid_post", "mlp_out", "attn_out")
_MIN_GGUF_BYTES = 24


def check_model(path: Path, hook_points: Sequence[str]) -> None:
    """Look at a model folder or .gguf file; UnusableError says what is wrong with it."""
    if path.is_dir():
        check_folder(path)
        check_layers(read_json(path / "config.json"), hook_points)
    elif path.suffix == ".gguf":
        _check_gguf(path)
    elif path.suffix in _PICKLES:
        raise UnusableError("unsafe-format", _pickle_text([path.name]))
    else:
        raise UnusableError(
            "model-missing",
            f"{path.name} is no model: give a folder with config.json and safetensors, or a .gguf file.",
        )


def check_folder(folder: Path) -> None:
    """A Hugging Face folder has config.json and whole safetensors files."""
    files = weight_files(folder)
    if not (folder / "config.json").is_file():
        raise UnusableError("model-missing", f"{folder.name} has no config.json; it is no Hugging Face model folder.")
    for file in files:
        read_header(file)


def check_adapter(folder: Path) -> None:
    """A PEFT adapter has adapter_config.json and adapter_model.safetensors."""
    weights = folder / "adapter_model.safetensors"
    if not folder.is_dir() or not (folder / "adapter_config.json").is_file():
        raise UnusableError("model-missing", f"{folder.name} has no adapter_config.json; it is no PEFT adapter.")
    if not weights.is_file():
        _refuse_pickles(folder)
        raise UnusableError("weights-missing", f"{folder.name} has no {weights.name}.")
    read_header(weights)


def check_layers(config: dict[str, Any], hook_points: Sequence[str]) -> None:
    """Hook points lie within the model's layers, where its config says how many it has."""
    layers = _layer_count(config)
    if layers is None:
        return
    beyond = [name for name in hook_points if int(name.partition(".")[2]) >= layers]
    if beyond:
        there = ", ".join(f"{kind}.0 to {kind}.{layers - 1}" for kind in _KINDS)
        raise UnusableError(
            "unknown-hook-point",
            f"{', '.join(beyond)}: the model has {layers} layers, counted from 0. Its hook points: {there}.",
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; UnusableError `truncated-file` where it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnusableError("truncated-file", f"{path.name} is damaged: {error}.") from error
    if not isinstance(value, dict):
        raise UnusableError("truncated-file", f"{path.name} holds no JSON object.")
    return value


def weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        return _indexed(folder, index)
    _refuse_pickles(folder)
    gguf = sorted(file.name for file in folder.glob("*.gguf"))
    hint = f" Name the file itself: file://.../{gguf[0]}" if gguf else ""
    raise UnusableError("weights-missing", f"{folder.name} has no model.safetensors.{hint}")


def _indexed(folder: Path, index: Path) -> list[Path]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise UnusableError("truncated-file", f"{index.name} has no weight_map.")
    return [member(folder, name) for name in sorted(set(shards.values()))]


def member(folder: Path, name: str) -> Path:
    """A safetensors file that a manifest or index names. It may not lead out of the folder."""
    if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UnusableError("path-escapes", f"{name!r} leads out of the folder {folder.name}.")
    if not name.endswith(".safetensors"):
        raise UnusableError("unsafe-format", f"{name!r} is no safetensors file; nothing else is opened.")
    file = folder / name
    if not file.is_file():
        raise UnusableError("shard-missing", f"{name!r} is named in {folder.name}, but is not there.")
    return file


def _refuse_pickles(folder: Path) -> None:
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise UnusableError("unsafe-format", _pickle_text(pickles))


def _pickle_text(names: Sequence[str]) -> str:
    return (
        f"{', '.join(names[:3])}: opening a pickle can run any code, so it is refused. "
        "Save the model with safe serialization (safetensors)."
    )


def _check_gguf(path: Path) -> None:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF" or path.stat().st_size < _MIN_GGUF_BYTES:
        raise UnusableError("truncated-file", f"{path.name} is cut off, or no GGUF file.")


def _layer_count(config: dict[str, Any]) -> int | None:
    """Layers of the model; multimodal ones keep the number in a part of their config. None: it does not say."""
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):
            for key in _LAYER_KEYS:
                if isinstance(part.get(key), int) and part[key] > 0:
                    return int(part[key])
    return None
