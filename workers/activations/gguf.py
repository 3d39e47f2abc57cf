"""GGUF files: converted once to a plain Hugging Face folder in the cache.

transformers dequantises a GGUF file in 16-60 s on every load; the converted folder loads in under a second.
"""

import json
import os
import shutil
import uuid
from pathlib import Path

import structlog
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from service.checkpoints.gguf import check_gguf
from service.kit.digests import sha256
from workers.activations.tensorfiles import refusals
from workers.errors import RunError

log = structlog.get_logger("featurewatch.worker")

DIGESTS = ".digests"
"""SHA-256 of each file of a converted model."""
_CONVERTER = "3"  # part of the folder's name: raise it when the conversion changes


def convert_gguf(file: Path, cache_dir: Path) -> Path:
    """Folder with the model (float32 safetensors, with its head) and tokenizer of a GGUF file.

    Its name is the digest of the file's content. RunError `truncated-file`, `too-large`, `weights-missing`,
    `config-mismatch`, `model-load-failed`.
    """
    with refusals():
        check_gguf(file)
    target = cache_dir / "gguf" / f"{sha256(file)[:20]}-{_CONVERTER}"
    if target.is_dir():
        if _is_whole(target):
            return target
        log.warning("a converted model is damaged; converting it again", folder=target.name)
        shutil.rmtree(target)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        _convert(file, temporary)
        digests = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
        (temporary / DIGESTS).write_text(json.dumps(digests), encoding="utf-8")
        for path in temporary.iterdir():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
        if not target.exists():
            temporary.rename(target)
    except OSError:
        if not target.exists():  # else another worker was first, with the same result
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _is_whole(folder: Path) -> bool:
    """Whether a converted model holds what was written."""
    try:
        digests = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        return all(sha256(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError):
        return False


def _convert(file: Path, folder: Path) -> None:
    named = {"gguf_file": file.name, "trust_remote_code": False, "local_files_only": True}
    # Alone in a folder: transformers would read an adapter_config.json beside it, and go where that points.
    alone = folder / "source"
    alone.mkdir()
    (alone / file.name).symlink_to(file.resolve())
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
