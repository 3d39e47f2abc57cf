"""GGUF files, converted once to a Hugging Face folder in the cache.

transformers dequantises a GGUF file on every load, in 16 to 60 s; the converted folder loads in under a second.
"""

import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from featurewatch.service.checkpoints.gguf import check_gguf
from featurewatch.service.kit.digests import ChangedWhileReadError, FileState, sha256
from featurewatch.workers.activations.sources import sealed
from featurewatch.workers.activations.tensorfiles import refusals
from featurewatch.workers.errors import RunError

_CONVERTER = "3"  # part of the folder's name: increase it when the conversion changes


def convert_gguf(file: Path, cache_dir: Path) -> Path:
    """Folder with the model (float32 safetensors, including the head) and tokenizer of a GGUF file.

    The folder is named after the digest of the file. Raises RunError `truncated-file`, `too-large`, `weights-missing`,
    `config-mismatch`, `model-load-failed`, and `content-changed` if the file is modified meanwhile.
    """
    before = FileState.of(file)
    with refusals():
        check_gguf(file)

    def fill(folder: Path) -> None:
        _convert(file, folder)
        if FileState.of(file) != before:  # the converted content may differ from the hashed one
            raise _changed(file)

    try:
        digest = sha256(file)
    except ChangedWhileReadError as error:
        raise _changed(file) from error
    return sealed.build(cache_dir / "gguf" / f"{digest[:20]}-{_CONVERTER}", fill)


def _changed(file: Path) -> RunError:
    return RunError(
        "content-changed",
        f"{file.name} was modified while it was converted. Nothing was judged. Restore the registered file and retry "
        "the run.",
    )


def _convert(file: Path, folder: Path) -> None:
    named = {"gguf_file": file.name, "trust_remote_code": False, "local_files_only": True}
    # In a separate folder: transformers would follow an adapter_config.json beside it to another model.
    alone = folder / "source"
    alone.mkdir()
    (alone / file.name).symlink_to(file.absolute())  # it may itself link to an open descriptor
    try:
        loaded = AutoModelForCausalLM.from_pretrained(alone, dtype=torch.float32, **named)
        tokenizer = AutoTokenizer.from_pretrained(alone, **named)
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, NotImplementedError, TypeError) as error:
        raise RunError("model-load-failed", f"{file.name} could not be converted: {error}") from error
    finally:
        shutil.rmtree(alone)
    # transformers refuses to save a model loaded from GGUF, because its config is still marked as quantised.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
