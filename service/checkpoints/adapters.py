"""PEFT adapters by an allow-list: what `adapter_config.json` may say, checked before PEFT sees any of it.

PEFT treats many members as regular expressions, module names or places to load from. Only LoRA is read, only with
members that are known here, and only with plain names where PEFT would take a pattern.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurewatch.service.checkpoints.faults import UnusableError
from featurewatch.service.checkpoints.jsonfile import read_json
from featurewatch.service.checkpoints.tensorfile import Tensor

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# PEFT writes 2 kB; one that names every module of a large mixture of experts takes a few hundred.
MAX_CONFIG_BYTES = 1_000_000
# Names of single modules: the largest models of the hub have about 50,000 linear layers.
MAX_NAMES = 50_000
MAX_RANK = 65_536
# A rank that no tensor has may be allocated for every module before PEFT notices; a small one costs nothing.
_HARMLESS_RANK = 64

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_]+(?:[.-][A-Za-z0-9_]+)*")
_MAX_NAME_LENGTH = 256
ALL_LINEAR = "all-linear"
# How the matrices were filled before training. They only chose where training began: the file holds all of them.
_STARTS = (True, False, "gaussian", "eva", "orthogonal", "mica")
# Members that say nothing about the merged weights. None of them is passed on, and no place that they name is opened.
_IGNORED = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "eva_config", "inference_mode", "init_lora_weights", "lora_dropout",
        "megatron_core", "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
    }
)  # fmt: skip


@dataclass(frozen=True)
class AdapterConfig:
    """A checked LoRA config. `settings` are arguments of `peft.LoraConfig` that matter for a merge, and no others."""

    settings: dict[str, Any]

    @property
    def largest_rank(self) -> int:
        """The highest rank that any module gets."""
        return max(self.settings["r"], *self.settings["rank_pattern"].values(), 1)


def read_config(folder: Path) -> AdapterConfig:
    """The checked config of an adapter's folder.

    UnusableError `adapter-missing`, `too-large`, `truncated-file`, `adapter-unsupported`; the last names the member.
    """
    if not folder.is_dir() or not (folder / CONFIG).is_file():
        raise UnusableError("adapter-missing", f"{folder.name} has no {CONFIG}; it is not a PEFT adapter.")
    config = read_json(folder / CONFIG, max_bytes=MAX_CONFIG_BYTES)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnusableError("adapter-unsupported", f"{CONFIG}: peft_type is {_short(kind)}; only LORA can be merged.")
    start = config.get("init_lora_weights", True)
    if not any(type(start) is type(known) and start == known for known in _STARTS):
        raise UnusableError(
            "adapter-unsupported",
            f"{CONFIG}: init_lora_weights is {_short(start)}, which changes the base model's weights as well. Convert "
            "the adapter to plain LoRA: `save_pretrained(..., path_initial_model_for_weight_conversion=...)`.",
        )
    settings = {"lora_alpha": 8, "rank_pattern": {}, "alpha_pattern": {}}
    for member, value in config.items():
        if member in _IGNORED:
            continue
        if member in _CHECKS:
            check, wanted = _CHECKS[member]
            if not check(value):
                raise UnusableError("adapter-unsupported", f"{CONFIG}: {member} is {_short(value)}; {wanted}.")
            if value is not None:
                settings[member] = value
        elif value not in (None, False, "", [], {}):
            raise UnusableError(
                "adapter-unsupported", f"{CONFIG}: {_short(member)} is {_short(value)}; this cannot be merged."
            )
    for member in ("r", "target_modules"):
        if member not in settings:
            raise UnusableError("adapter-unsupported", f"{CONFIG}: {member} is missing; {_CHECKS[member][1]}.")
    return AdapterConfig(settings)


def check_ranks(config: AdapterConfig, tensors: dict[str, Tensor]) -> None:
    """UnusableError `adapter-mismatch` where a config's ranks are ones that none of the file's matrices has."""
    matrices = (tensor.shape for name, tensor in tensors.items() if "lora_A" in name or "lora_embedding_A" in name)
    largest = max((shape[0] for shape in matrices if shape), default=0)
    if config.largest_rank > max(largest, _HARMLESS_RANK):
        raise UnusableError(
            "adapter-mismatch",
            f"{CONFIG} has a rank of {config.largest_rank}; the highest in {WEIGHTS} is {largest}.",
        )


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_RANK


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_NAME_LENGTH and _PLAIN_NAME.fullmatch(value) is not None


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_NAMES and all(_is_name(name) for name in value)


def _are_layers(value: Any) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return len(numbers) <= MAX_NAMES and all(type(number) is int and number >= 0 for number in numbers)


def _is_pattern(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def named(value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        return _are_names(list(value)) and all(check(number) for number in value.values())

    return named


def _or_null(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


_NAMES = "it must be a list of plain module names; patterns are not read"
_FLAG = (_is_flag, "it must be true or false")
# Member -> what it must be, in code and in words.
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_is_rank, f"it must be a whole number from 1 to {MAX_RANK}"),
    "lora_alpha": (_is_number, "it must be a number"),
    "target_modules": (
        lambda value: value == ALL_LINEAR or (bool(value) and _are_names(value)),
        f"it must be a list of plain module names, or {ALL_LINEAR!r}; patterns are not read",
    ),
    "exclude_modules": (_or_null(_are_names), _NAMES),
    "modules_to_save": (_or_null(_are_names), _NAMES),
    "layers_pattern": (_or_null(lambda value: _are_names(value) or value == "" or _is_name(value)), _NAMES),
    "layers_to_transform": (_or_null(_are_layers), "it must be a layer's number, or a list of them"),
    "rank_pattern": (_or_null(_is_pattern(_is_rank)), "it must give a rank to each of some plain module names"),
    "alpha_pattern": (_or_null(_is_pattern(_is_number)), "it must give a number to each of some plain module names"),
    "bias": (lambda value: value in ("none", "all", "lora_only"), "it must be none, all or lora_only"),
    "fan_in_fan_out": _FLAG,
    "use_rslora": _FLAG,
    "use_dora": _FLAG,
    "lora_bias": _FLAG,
}


def _short(value: Any) -> str:
    """A value of a config in an error: it may be of any length."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
