"""PEFT adapters (LoRA), merged into the weights after loading so that hooks see a plain model.

PEFT never reads an adapter's folder: its config is built from the members that `service.checkpoints.adapters` allows,
and its weights are read here. `peft` is imported lazily because it takes seconds, and few checkpoints have an adapter.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from featurewatch.service.checkpoints.adapters import WEIGHTS, AdapterConfig
from featurewatch.service.checkpoints.weights import read_adapter
from featurewatch.workers.activations.tensorfiles import refusals
from featurewatch.workers.errors import RunError

_PREFIX = "base_model.model."  # of an adapter tensor, before the path of its module
_PEFT_ERRORS = (ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, OSError)


class _Shell(nn.Module):
    """A model's body under its name in the full model, such as `model` or `transformer`.

    Adapters name modules from the full model; with this shell they apply without loading the head.
    """

    def __init__(self, body: nn.Module, name: str) -> None:
        super().__init__()
        self.add_module(name, body)
        self.config = body.config


def check_adapter(folder: Path) -> AdapterConfig:
    """Check an adapter's files and return its config.

    Raises RunError `adapter-missing`, `adapter-unsupported`, `adapter-mismatch`, `unsafe-format`, `truncated-file`,
    `too-large`.
    """
    with refusals():
        return read_adapter(folder)


def merge_adapter(body: nn.Module, folder: Path) -> nn.Module:
    """Merge an adapter into the weights of `body`, in place, and return it.

    Adapter weights of the head are ignored. Raises the RunErrors of `check_adapter`.
    """
    from peft import LoraConfig, PeftModel, set_peft_model_state_dict  # noqa: PLC0415

    settings = check_adapter(folder).settings
    weights = load_file(folder / WEIGHTS)
    prefix = str(body.base_model_prefix)
    wrapped = any(key.startswith(f"{_PREFIX}{prefix}.") for key in weights)
    host = _Shell(body, prefix) if wrapped else body
    roots = {name for name, _ in host.named_children()}
    weights = {key: value for key, value in weights.items() if key.removeprefix(_PREFIX).split(".")[0] in roots}
    if to_save := settings.get("modules_to_save"):
        names = {name.rpartition(".")[2] for name, _ in host.named_modules()}
        settings["modules_to_save"] = [name for name in to_save if name in names] or None
    _check_shapes(host, weights)
    try:
        config = LoraConfig(**settings, inference_mode=True)
        adapted = PeftModel(host, config)
        result: Any = set_peft_model_state_dict(adapted, weights)
    except _PEFT_ERRORS as error:
        raise _mismatch(error) from error
    lacking = [key for key in result.missing_keys if adapted.prefix in key] if hasattr(adapted, "prefix") else []
    if not weights or result.unexpected_keys or lacking:
        stray = ([*result.unexpected_keys, *lacking] or ["no weights for the body"])[0]
        raise _mismatch(stray)
    try:
        adapted.merge_and_unload(safe_merge=False)
    except _PEFT_ERRORS as error:  # e.g. it adds to the bias of a layer without one
        raise _mismatch(error) from error
    return body


def _mismatch(reason: object) -> RunError:
    return RunError("adapter-mismatch", f"The adapter does not fit its base model: {reason}.")


def _check_shapes(host: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Check LoRA's matrices against the layers they change; PEFT's own error is a page of text."""
    modules = dict(host.named_modules())
    for key, value in weights.items():
        path, separator, _ = key.removeprefix(_PREFIX).partition(".lora_A.")
        if not separator:
            continue
        layer = getattr(modules.get(path), "weight", None)
        if layer is None:
            raise RunError("adapter-mismatch", f"The adapter changes {path}, which the base model does not have.")
        if value.dim() == 2 and value.shape[1] not in layer.shape:
            raise RunError(
                "adapter-mismatch",
                f"The adapter was trained on a different base model: its {path} has {value.shape[1]} inputs, but the "
                f"weight here has shape {list(layer.shape)}.",
            )
