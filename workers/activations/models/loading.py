"""Loading models: the body (without the language-model head) with an adapter merged into it, and the tokenizer.

Neither `trust_remote_code` nor pickles are ever used: `sources` admits only safetensors, JSON and tokenizer files.
"""

import math
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils.tqdm import disable_progress_bars as disable_hub_progress_bars
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from featurewatch.service.checkpoints import weights
from featurewatch.workers.activations.models.adapters import check_adapter, merge_adapter
from featurewatch.workers.activations.models.gguf import convert_gguf
from featurewatch.workers.activations.sources.fetch import locate, weight_files
from featurewatch.workers.activations.tensorfiles import read_header, refusals
from featurewatch.workers.errors import RunError

# Progress bars would clutter a service's error stream.
disable_hub_progress_bars()
transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
# Warnings go to our log and the run's log instead of the error stream.
transformers_logging.disable_default_handler()
transformers_logging.enable_propagation()

_LOAD_OPTIONS: Any = {
    "use_safetensors": True,
    "trust_remote_code": False,
    "local_files_only": True,
    "output_loading_info": True,
}
_LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError)
# Slack for weights that files may lack (a pooler); quantised files pack up to eight weights into one number.
_SLACK, _PACKED = 1.5, 8
_HARMLESS_PARAMETERS = 2**24
# Computed masks and tables. GPT-Neo has the most, 134 million numbers.
_HARMLESS_BUFFERS = 2**28


def compute_dtype(device: str) -> torch.dtype:
    """bfloat16 if the hardware computes in it (CUDA since Ampere, CPUs with AVX512-BF16 or AMX), else float32."""
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device == "cpu":
        # Private, but torch offers no other way; with an older torch that lacks them the result is float32.
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        native = any(getattr(torch.cpu, name, lambda: False)() for name in probes)
        return torch.bfloat16 if native else torch.float32
    return torch.float32


def locate_model(uri: str, *, roots: tuple[Path, ...], cache_dir: Path) -> Path:
    """Local Hugging Face folder of a model, with its headers checked. GGUF files are converted.

    Raises the RunErrors of `locate`, `check_model` and `convert_gguf`.
    """
    path = locate(uri, roots, cache_dir)
    if path.is_file():
        if path.suffix != ".gguf":
            raise RunError(
                "unsafe-format", f"{path.name} is not a model. Name a folder with safetensors files, or a .gguf file."
            )
        path = convert_gguf(path, cache_dir)
    check_model(path)
    return path


def check_model(folder: Path) -> None:
    """Check that a Hugging Face folder is complete and self-contained, and that its config matches its weights.

    Raises RunErrors with the codes of `service.checkpoints.weights.check_folder`, such as `config-mismatch`.
    """
    with refusals():
        stored = weights.check_folder(folder).elements
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # configs raise their own error classes
        code = "remote-code" if "trust_remote_code" in str(error) else "model-load-failed"
        raise RunError(code, f"{folder.name} could not be loaded: {error}") from error
    # The check bounds the number of layers, so this shell of the model is small; it reveals all other sizes.
    try:
        with torch.device("meta"):
            model = AutoModel.from_config(config, trust_remote_code=False)
    except (ArithmeticError, AssertionError, IndexError) as error:  # sizes of 0, or not divisible
        raise RunError("model-load-failed", f"{folder.name} could not be loaded: {error!r}") from error
    except _LOAD_ERRORS:
        return  # loading will fail with the same error and report it
    packed = _PACKED if hasattr(config, "quantization_config") else 1
    parameters = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(buffer.numel() for buffer in model.buffers())
    if parameters > _SLACK * packed * stored + _HARMLESS_PARAMETERS or buffers > max(stored, _HARMLESS_BUFFERS):
        raise RunError(
            "config-mismatch",
            f"config.json of {folder.name} describes a model with {parameters + buffers:,} numbers, but its files hold "
            f"{stored:,}.",
        )


def load_model(
    uri: str, adapter: str | None, *, roots: tuple[Path, ...], device: str, dtype: torch.dtype, cache_dir: Path
) -> tuple[nn.Module, Any]:
    """(body, tokenizer) of a checkpoint: the model without its head, in evaluation mode on `device`.

    uri, adapter: see `sources`. A PEFT adapter is merged into the weights. Raises the RunErrors of `locate_model`, and
    `model-load-failed`, `remote-code`, `weights-missing`, `out-of-memory`, `adapter-mismatch`.
    """
    folder = locate_model(uri, roots=roots, cache_dir=cache_dir)
    check_memory(folder, device, dtype)
    if adapter:
        adapter_folder = locate(adapter, roots, cache_dir)
        check_adapter(adapter_folder)
        # Merged in float32, because bfloat16 would round small changes away.
        model = merge_adapter(_load_body(folder, torch.float32), adapter_folder).to(dtype)
    else:
        model = _load_body(folder, dtype)
    config: Any = model.config
    config.use_cache = False  # nothing is generated
    return model.requires_grad_(False).eval().to(device), load_tokenizer(folder)


def load_causal(folder: Path) -> Any:
    """A causal language model with its head, in float32 on the CPU. Raises RunError `no-causal-head`."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **_LOAD_OPTIONS)
    except _LOAD_ERRORS as error:
        raise RunError("no-causal-head", f"{folder.name} is not a causal language model: {error}") from error
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])[0]
        raise RunError("no-causal-head", f"{folder.name} has no language-model head: {missing} is missing.")
    model.config.use_cache = False
    return model


def max_tokens(model: nn.Module) -> int | None:
    """The longest input of a model with learned position embeddings; None if only memory limits it."""
    for name in ("wpe", "embeddings.position_embeddings", "decoder.embed_positions", "embed_positions"):
        try:
            embedding = model.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(embedding, nn.Embedding):
            # RoBERTa and OPT number positions from after the padding token, or from 2.
            offset = getattr(embedding, "offset", None) or (
                0 if embedding.padding_idx is None else embedding.padding_idx + 1
            )
            return embedding.num_embeddings - offset
    return None


def _load_body(folder: Path, dtype: torch.dtype) -> nn.Module:
    # Silences the warning about unused weights: the head is left out on purpose.
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        loaded: tuple[nn.Module, dict[str, Any]] = AutoModel.from_pretrained(folder, dtype=dtype, **_LOAD_OPTIONS)
    except _LOAD_ERRORS as error:
        code = "remote-code" if "trust_remote_code" in str(error) else "model-load-failed"
        raise RunError(code, f"{folder.name} could not be loaded: {error}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    model, info = loaded
    # transformers initialises missing weights at random. A pooler is not used, so it may be missing.
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise RunError(
            "weights-missing",
            f"{folder.name} is missing {len(missing)} weights of its architecture, such as {missing[0]}.",
        )
    return model


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer of a folder. Raises RunError `tokenizer-missing`."""
    # A tokenizer.json is complete; model-specific classes rebuild parts of it from defaults.
    file = folder / "tokenizer.json"
    loader: Any = PreTrainedTokenizerFast if file.is_file() else AutoTokenizer
    # Explicit, because tokenizer_config.json can name any other file on this machine.
    named = {"tokenizer_file": str(file)} if file.is_file() else {}
    try:
        return loader.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **named)
    except Exception as error:  # the tokenizers library raises a bare Exception for a damaged file
        raise RunError("tokenizer-missing", f"{folder.name} has no usable tokenizer: {error}") from error


def check_memory(folder: Path, device: str, dtype: torch.dtype, *, copies: int = 1) -> None:
    """Raise RunError `out-of-memory` if the model does not fit. copies: number of copies of the weights."""
    entries = [entry for file in weight_files(folder) for entry in read_header(file).values()]
    needed = int(sum(math.prod(entry.shape) for entry in entries) * dtype.itemsize * copies * 1.1)
    available = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else _available_memory()
    if available is not None and needed > available:
        raise RunError(
            "out-of-memory",
            f"{folder.name} needs about {needed / 1e9:.1f} GB on {device}, but only {available / 1e9:.1f} GB are free.",
        )


def _available_memory() -> int | None:
    """Available memory in bytes; None if the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
