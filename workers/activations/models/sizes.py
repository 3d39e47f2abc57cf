"""Compares the model that a config describes with the tensors in its files, before allocating anything."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel

from featurewatch.service.checkpoints import weights
from featurewatch.workers.activations.tensorfiles import refusals
from featurewatch.workers.errors import RunError

# Slack for weights that files may lack (a pooler); quantised files pack up to eight weights into one number.
_SLACK, _PACKED = 1.5, 8
_HARMLESS_PARAMETERS = 2**24
# Computed masks and tables. GPT-Neo has the most, 134 million numbers.
_HARMLESS_BUFFERS = 2**28


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
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError):
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
