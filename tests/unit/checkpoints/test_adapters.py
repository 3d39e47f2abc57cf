"""Adapters by an allow-list: kinds, members and values that are known, and nothing that PEFT takes for a pattern."""

import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PeftType

from featurewatch.service.checkpoints.adapters import read_config
from featurewatch.service.checkpoints.faults import UnusableError
from featurewatch.service.checkpoints.weights import check_adapter
from featurewatch.workers.activations.models.adapters import check_adapter as check_in_worker
from featurewatch.workers.errors import RunError
from tests.unit.checkpoints.raw import entry, write_safetensors

CONFIG = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"]}


def write(folder: Path, **changes: Any) -> Path:
    """An adapter's folder with one matrix of rank 8."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changes))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    write_safetensors(folder / "adapter_model.safetensors", {name: entry([8, 4], 0, 128)}, 128)
    return folder


def refused(folder: Path, code: str, *words: str) -> None:
    """By the API and, in the same words, by the worker."""
    with pytest.raises(UnusableError) as caught:
        check_adapter(folder)
    assert caught.value.code == code, caught.value.detail
    for word in words:
        assert word in caught.value.detail
    assert len(caught.value.detail) < 500
    with pytest.raises(RunError) as failed:
        check_in_worker(folder)
    assert (failed.value.code, failed.value.detail) == (code, caught.value.detail)


def test_what_peft_writes(tmp_path: Path) -> None:
    """Every member of the installed PEFT's own config is known, or harmless where it is not set."""
    LoraConfig(r=8, target_modules=["q_proj"], task_type="CAUSAL_LM", base_model_name_or_path="org/x").save_pretrained(
        tmp_path
    )
    settings = read_config(tmp_path).settings
    assert settings["r"] == 8
    assert settings["target_modules"] == ["q_proj"]
    assert set(settings) <= {
        "alpha_pattern", "bias", "fan_in_fan_out", "lora_alpha", "lora_bias", "r", "rank_pattern", "target_modules",
        "use_dora", "use_rslora",
    }  # fmt: skip


@pytest.mark.parametrize("kind", [kind.value for kind in PeftType if kind is not PeftType.LORA] + ["lora", "X" * 999])
def test_other_kinds(tmp_path: Path, kind: str) -> None:
    refused(write(tmp_path / "a", peft_type=kind), "adapter-unsupported", "peft_type", kind[:90])


@pytest.mark.parametrize("kind", [None, 1, ["LORA"], {"a": 1}])
def test_kinds_that_are_no_names(tmp_path: Path, kind: Any) -> None:
    refused(write(tmp_path / "a", peft_type=kind), "adapter-unsupported", "peft_type")


PATTERNS = [
    ".*q_proj",
    "(a+)+$",
    r"model\.layers\.\d+",
    "q_proj|v_proj",
    "^q_proj",
    "q_proj$",
    "a..b",
    "",
    "a b",
    "a/b",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(tmp_path: Path, pattern: str) -> None:
    for member in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
        refused(write(tmp_path / "a", **{member: [pattern]}), "adapter-unsupported", member)
    for member in ("rank_pattern", "alpha_pattern"):
        refused(write(tmp_path / "a", **{member: {pattern: 4}}), "adapter-unsupported", member)
    for member in ("target_modules", "exclude_modules", "modules_to_save"):
        refused(write(tmp_path / "a", **{member: pattern}), "adapter-unsupported", member)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("target_modules", "q_proj"),  # PEFT takes any text but all-linear for a pattern
        ("target_modules", None),
        ("target_modules", []),
        ("target_modules", [["q_proj"]]),
        ("target_modules", ["a" * 257]),
        ("target_modules", ["q_proj"] * 50_001),
        ("r", 0),
        ("r", True),
        ("r", 8.0),
        ("r", 10**9),
        ("lora_alpha", "16"),
        ("lora_alpha", float("nan")),
        ("lora_alpha", None),
        ("rank_pattern", {"q_proj": 10**9}),
        ("rank_pattern", ["q_proj"]),
        ("alpha_pattern", {"q_proj": None}),
        ("layers_to_transform", "0"),
        ("layers_to_transform", [-1]),
        ("bias", "some"),
        ("use_dora", 1),
        ("fan_in_fan_out", "true"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", "/etc/passwd"),
        ("init_lora_weights", 1),
        ("init_lora_weights", ["gaussian"]),
        ("target_parameters", ["experts.weight"]),
        ("trainable_token_indices", [1, 2]),
        ("layer_replication", [[0, 4]]),
        ("alora_invocation_tokens", [1]),
        ("megatron_config", {"a": 1}),
        ("use_qalora", True),
        ("ensure_weight_tying", True),
        ("arrow_config", {"top_k": 3}),
        ("shadow_model", "/outside/shadow.bin"),
        ("adapters", {"0": "/outside/adapter"}),
        ("x" * 1000, "y" * 1000),
    ],
)
def test_members_and_values_that_are_not_read(tmp_path: Path, member: str, value: Any) -> None:
    refused(write(tmp_path / "a", **{member: value}), "adapter-unsupported", member[:50])


@pytest.mark.parametrize("missing", ["peft_type", "r", "target_modules"])
def test_members_that_are_needed(tmp_path: Path, missing: str) -> None:
    folder = write(tmp_path / "a")
    (folder / "adapter_config.json").write_text(json.dumps({key: CONFIG[key] for key in CONFIG if key != missing}))
    refused(folder, "adapter-unsupported", missing)


def test_places_that_a_config_names_are_not_passed_on(tmp_path: Path) -> None:
    names = {
        "base_model_name_or_path": "/outside",
        "revision": "main",
        "auto_mapping": {"base_model_class": "X", "parent_library": "os"},
        "megatron_core": "os",
    }
    settings = check_in_worker(write(tmp_path / "a", **names)).settings
    assert set(settings) == {"r", "target_modules", "lora_alpha", "rank_pattern", "alpha_pattern"}
    check_adapter(tmp_path / "a")


def test_members_of_other_versions_are_harmless_while_they_are_not_set(tmp_path: Path) -> None:
    check_adapter(write(tmp_path / "a", of_tomorrow=None, another=False, third={}, fourth=[], fifth=""))
    refused(write(tmp_path / "a", of_tomorrow=0.5), "adapter-unsupported", "of_tomorrow")


def test_a_rank_that_no_matrix_has(tmp_path: Path) -> None:
    refused(write(tmp_path / "a", r=65_536), "adapter-mismatch", "65536", "8")
    refused(write(tmp_path / "a", rank_pattern={"q_proj": 65_536}), "adapter-mismatch", "65536")


def test_configs_that_are_too_large_or_damaged(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", target_modules=["a" * 200] * 10_000)
    refused(folder, "too-large", "adapter_config.json")
    for text in ("", "[]", "{", "[" * 10_000, '{"r": 1', "\udcff"):
        (folder / "adapter_config.json").write_bytes(text.encode(errors="surrogateescape"))
        refused(folder, "truncated-file", "adapter_config.json")
    (folder / "adapter_config.json").unlink()
    refused(folder, "adapter-missing", "adapter_config.json")


def test_only_safetensors_are_opened(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    file = folder / "adapter_model.safetensors"
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04N.")
    check_adapter(folder)
    file.write_bytes(file.read_bytes()[:-1])
    refused(folder, "truncated-file", file.name)
    file.unlink()
    refused(folder, "unsafe-format", "adapter_model.bin")
    (folder / "adapter_model.bin").unlink()
    refused(folder, "adapter-missing", file.name)
