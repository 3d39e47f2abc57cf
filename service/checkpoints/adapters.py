"""Checks `adapter_config.json` against an allow-list before PEFT sees any of it.

PEFT treats many members as regular expressions, module names or locations to load from. Only LoRA adapters are read,
only with the members listed here, and only with plain names where PEFT would accept a pattern.
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
# PEFT writes about 2 kB. A config that names every module of a large mixture of experts takes a few hundred.
MAX_CONFIG_BYTES = 1_000_000
# Names of single modules: the largest models of the hub have about 50,000 linear layers.
MAX_NAMES = 50_000
MAX_RANK = 65_536
# PEFT may allocate a wrong rank for every module before it notices. Small ranks cost nothing.
_HARMLESS_RANK = 64

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_]+(?:[.-][A-Za-z0-9_]+)*")
_MAX_NAME_LENGTH = 256
ALL_LINEAR = "all-linear"
# Initialisations that only choose where training starts: the file holds the trained matrices in full.
_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal", "mica")
# Members that do not affect the merged weights. They are dropped, and no location that they name is opened.
_IGNORED = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "eva_config", "inference_mode", "init_lora_weights", "lora_dropout",
        "megatron_core", "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
    }
)  # fmt: skip


@dataclass(frozen=True)
class AdapterConfig:
    """A checked LoRA config. `settings` are exactly the arguments of `peft.LoraConfig` that a merge needs."""

    settings: dict[str, Any]

    @property
    def largest_rank(self) -> int:
        """The highest rank of any module."""
        return max(self.settings["r"], *self.settings["rank_pattern"].values(), 1)


def read_config(folder: Path) -> AdapterConfig:
    """Read and check the config in an adapter's folder.

    Raises UnusableError: `adapter-missing`, `too-large`, `truncated-file`, or `adapter-unsupported` with the member.
    """
    if not folder.is_dir() or not (folder / CONFIG).is_file():
        raise UnusableError("adapter-missing", f"{folder.name} is not a PEFT adapter: it has no {CONFIG}.")
    config = read_json(folder / CONFIG, max_bytes=MAX_CONFIG_BYTES)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnusableError(
            "adapter-unsupported", f"{CONFIG}: peft_type is {_short(kind)}; only LORA adapters are supported."
        )
    initialisation = config.get("init_lora_weights", True)
    if not any(type(initialisation) is type(known) and initialisation == known for known in _INITIALISATIONS):
        raise UnusableError(
            "adapter-unsupported",
            f"{CONFIG}: init_lora_weights is {_short(initialisation)}, which also modifies the base model's weights. "
            "Convert the adapter to plain LoRA: "
            "`save_pretrained(..., path_initial_model_for_weight_conversion=...)`.",
        )
    settings = {"lora_alpha": 8, "rank_pattern": {}, "alpha_pattern": {}}
    for member, value in config.items():
        if member in _IGNORED:
            continue
        if member in _CHECKS:
            check, requirement = _CHECKS[member]
            if not check(value):
                raise UnusableError("adapter-unsupported", f"{CONFIG}: {member} is {_short(value)}; {requirement}.")
            if value is not None:
                settings[member] = value
        elif value not in (None, False, "", [], {}):
            raise UnusableError(
                "adapter-unsupported", f"{CONFIG}: {_short(member)} is {_short(value)}, which is not supported."
            )
    for member in ("r", "target_modules"):
        if member not in settings:
            raise UnusableError("adapter-unsupported", f"{CONFIG}: {member} is missing; {_CHECKS[member][1]}.")
    return AdapterConfig(settings)


def check_ranks(config: AdapterConfig, tensors: dict[str, Tensor]) -> None:
    """Raise UnusableError `adapter-mismatch` if the config has a higher rank than any matrix in the file."""
    matrices = (tensor.shape for name, tensor in tensors.items() if "lora_A" in name or "lora_embedding_A" in name)
    largest = max((shape[0] for shape in matrices if shape), default=0)
    if config.largest_rank > max(largest, _HARMLESS_RANK):
        raise UnusableError(
            "adapter-mismatch",
            f"{CONFIG} has rank {config.largest_rank}, but the highest rank in {WEIGHTS} is {largest}.",
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
    def check_all(value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        return _are_names(list(value)) and all(check(number) for number in value.values())

    return check_all


def _or_null(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


_NAMES = "it must be a list of plain module names; patterns are not supported"
_FLAG = (_is_flag, "it must be true or false")
# Member -> its check, and the requirement in words.
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_is_rank, f"it must be a whole number from 1 to {MAX_RANK}"),
    "lora_alpha": (_is_number, "it must be a number"),
    "target_modules": (
        lambda value: value == ALL_LINEAR or (bool(value) and _are_names(value)),
        f"it must be a list of plain module names or {ALL_LINEAR!r}; patterns are not supported",
    ),
    "exclude_modules": (_or_null(_are_names), _NAMES),
    "modules_to_save": (_or_null(_are_names), _NAMES),
    "layers_pattern": (_or_null(lambda value: _are_names(value) or value == "" or _is_name(value)), _NAMES),
    "layers_to_transform": (_or_null(_are_layers), "it must be a layer index or a list of layer indices"),
    "rank_pattern": (_or_null(_is_pattern(_is_rank)), "it must map plain module names to ranks"),
    "alpha_pattern": (_or_null(_is_pattern(_is_number)), "it must map plain module names to numbers"),
    "bias": (lambda value: value in ("none", "all", "lora_only"), "it must be none, all or lora_only"),
    "fan_in_fan_out": _FLAG,
    "use_rslora": _FLAG,
    "use_dora": _FLAG,
    "lora_bias": _FLAG,
}


def _short(value: Any) -> str:
    """A config value, cut to a length that fits an error message."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
