"""GGUF files: converted once to a plain Hugging Face folder in the cache.

transformers dequantises a GGUF file in 16-60 s on every load; the converted folder loads in under a second.
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

_CONVERTER = "3"  # part of the folder's name: raise it when the conversion changes


def convert_gguf(file: Path, cache_dir: Path) -> Path:
    """Folder with the model (float32 safetensors, with its head) and tokenizer of a GGUF file.

    Its name is the digest of the file's content. RunError `truncated-file`, `too-large`, `weights-missing`,
    `config-mismatch`, `model-load-failed`; `content-changed` where the file is written to meanwhile.
    """
    before = FileState.of(file)
    with refusals():
        check_gguf(file)

    def fill(folder: Path) -> None:
        _convert(file, folder)
        if FileState.of(file) != before:  # what was converted need not be what was hashed
            raise _changed(file)

    try:
        digest = sha256(file)
    except ChangedWhileReadError as error:
        raise _changed(file) from error
    return sealed.build(cache_dir / "gguf" / f"{digest[:20]}-{_CONVERTER}", fill)


def _changed(file: Path) -> RunError:
    return RunError(
        "content-changed",
        f"{file.name} was written to while it was converted. Nothing was judged. Put the registered file back "
        "and retry the run.",
    )


def _convert(file: Path, folder: Path) -> None:
    named = {"gguf_file": file.name, "trust_remote_code": False, "local_files_only": True}
    # Alone in a folder: transformers would read an adapter_config.json beside it, and go where that points.
    alone = folder / "source"
    alone.mkdir()
    (alone / file.name).symlink_to(file.absolute())  # which may be a link to one that is held open
    try:
        loaded = AutoModelForCausalLM.from_pretrained(alone, dtype=torch.float32, **named)
        tokenizer = AutoTokenizer.from_pretrained(alone, **named)
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, NotImplementedError, TypeError) as error:
        raise RunError("model-load-failed", f"{file.name} could not be converted: {error}") from error
    finally:
        shutil.rmtree(alone)
    # A model that came out of a GGUF file refuses to be saved: its config still says that it is quantised.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
