"""PEFT adapters (LoRA and its kin): merged into the weights after loading, so that hooks stay plain.

`peft` is imported where it is used: it takes seconds to load, and few checkpoints come with an adapter.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from workers.activations.sources import refuse_pickles
from workers.activations.tensorfiles import read_header
from workers.errors import RunError

WEIGHTS = "adapter_model.safetensors"
_PEFT_ERRORS = (ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, OSError)


class _Shell(nn.Module):
    """A model's body under the name that it has in the model with a head, e.g. `model` or `transformer`.

    Adapters name their modules from that model; so the head need not be loaded to put them on.
    """

    def __init__(self, body: nn.Module, name: str) -> None:
        super().__init__()
        self.add_module(name, body)
        self.config = body.config


def check_adapter(folder: Path) -> None:
    """RunError `adapter-missing`, `unsafe-format` or `truncated-file` where a folder holds no whole, safe adapter."""
    if not (folder / "adapter_config.json").is_file():
        raise RunError("adapter-missing", f"{folder.name} holds no adapter_config.json; it is no PEFT adapter")
    if not (folder / WEIGHTS).is_file():
        refuse_pickles(folder)
        raise RunError("adapter-missing", f"{folder.name} holds no {WEIGHTS}")
    read_header(folder / WEIGHTS)


def merge_adapter(body: nn.Module, folder: Path) -> nn.Module:
    """The body with the adapter's changes in its weights. Changes and returns `body`.

    Weights for a head are left out. RunErrors of `check_adapter`, and `adapter-unsupported`, `adapter-mismatch`.
    """
    from peft import PeftModel, set_peft_model_state_dict  # noqa: PLC0415

    check_adapter(folder)
    config = _read_config(folder)
    weights = load_file(folder / WEIGHTS)
    prefix = str(body.base_model_prefix)
    wrapped = any(key.startswith(f"base_model.model.{prefix}.") for key in weights)
    host = _Shell(body, prefix) if wrapped else body
    roots = {name for name, _ in host.named_children()}
    weights = {key: value for key, value in weights.items() if _path(key).split(".")[0] in roots}
    if to_save := getattr(config, "modules_to_save", None):
        names = {name.rpartition(".")[2] for name, _ in host.named_modules()}
        config.modules_to_save = [name for name in to_save if name in names] or None
    _check_shapes(host, weights)
    try:
        adapted = PeftModel(host, config)
        result: Any = set_peft_model_state_dict(adapted, weights)
    except _PEFT_ERRORS as error:
        raise RunError("adapter-mismatch", f"the adapter does not fit its base model: {error}") from error
    lacking = [key for key in result.missing_keys if adapted.prefix in key] if hasattr(adapted, "prefix") else []
    if not weights or result.unexpected_keys or lacking:
        stray = ([*result.unexpected_keys, *lacking] or ["no weights for the body"])[0]
        raise RunError("adapter-mismatch", f"the adapter does not fit its base model: {stray}")
    adapted.merge_and_unload(safe_merge=False)
    return body


def _path(key: str) -> str:
    """Where a tensor of an adapter file belongs, without the prefix that PEFT writes before all of them."""
    return key.removeprefix("base_model.model.")


def _read_config(folder: Path) -> Any:
    from peft import PeftConfig  # noqa: PLC0415

    try:
        config = PeftConfig.from_pretrained(str(folder))
    except _PEFT_ERRORS as error:
        raise RunError("adapter-missing", f"adapter_config.json could not be read: {error}") from error
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise RunError(
            "adapter-unsupported", f"{config.peft_type} adapters add tokens or layers and cannot be merged into weights"
        )
    config.inference_mode = True
    if hasattr(config, "megatron_config"):
        config.megatron_config = None  # would import a module of the adapter's choice
    return config


def _check_shapes(host: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """LoRA's own matrices against the layers that they change, before PEFT says it in a page of text."""
    modules = dict(host.named_modules())
    for key, value in weights.items():
        path, found, _ = _path(key).partition(".lora_A.")
        if not found:
            continue
        layer = getattr(modules.get(path), "weight", None)
        if layer is None:
            raise RunError("adapter-mismatch", f"the adapter changes {path}, which the base model does not have")
        if value.dim() == 2 and value.shape[1] not in layer.shape:
            raise RunError(
                "adapter-mismatch",
                f"the adapter was made for another base model: {path} reads {value.shape[1]} values there, "
                f"its weight here is {list(layer.shape)}",
            )
