"""What a model's config would build, compared with the tensors that are there before anything is allocated."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel

from featurewatch.service.checkpoints import weights
from featurewatch.workers.activations.tensorfiles import refusals
from featurewatch.workers.errors import RunError

# For weights that files may lack (a pooler), and quantised ones, of which eight lie in one number.
_SLACK, _PACKED = 1.5, 8
_HARMLESS_PARAMETERS = 2**24
# Masks and tables that are computed: GPT-Neo, which has the most, 134 million numbers.
_HARMLESS_BUFFERS = 2**28


def check_model(folder: Path) -> None:
    """A Hugging Face folder is whole, refers to nothing elsewhere, and its config describes the weights in it.

    RunErrors with the codes of `service.checkpoints.weights.check_folder`, e.g. `config-mismatch`.
    """
    with refusals():
        there = weights.check_folder(folder).elements
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # its validation has errors of its own
        code = "remote-code" if "trust_remote_code" in str(error) else "model-load-failed"
        raise RunError(code, f"{folder.name} could not be loaded: {error}") from error
    # What was checked bounds the layers, so the shell of the model is small; it shows all other sizes.
    try:
        with torch.device("meta"):
            model = AutoModel.from_config(config, trust_remote_code=False)
    except (ArithmeticError, AssertionError, IndexError) as error:  # sizes of nought, or that cannot be divided
        raise RunError("model-load-failed", f"{folder.name} could not be loaded: {error!r}") from error
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError):
        return  # where it is not for want of memory to look at, the load fails with the same error, and says so
    packed = _PACKED if hasattr(config, "quantization_config") else 1
    parameters = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(buffer.numel() for buffer in model.buffers())
    if parameters > _SLACK * packed * there + _HARMLESS_PARAMETERS or buffers > max(there, _HARMLESS_BUFFERS):
        raise RunError(
            "config-mismatch",
            f"config.json of {folder.name} describes a model of {parameters + buffers:,} numbers; its files hold "
            f"{there:,}",
        )
