"""Writes a source's dictionary as a folder for other tools: SAELens and dictionary_learning.

saelens: `cfg.json` and `sae_weights.safetensors` of its `standard` architecture, for `SAE.load_from_disk`.
dictionary-learning: `config.json` and `ae.pt` of its `AutoEncoder`, for `load_dictionary`. It scales decoder rows to
unit norm on loading, so they are written that way; its activations are ours times the norm of each row.
Both also contain `feature_ids.txt`: the feature ids in column order, one per line.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from featurewatch.service.dictionaries.folding import Autoencoder, Floats, unit_rows
from featurewatch.service.kit.hook_points import KINDS, kind_of, layer_of

LAYOUTS = ("saelens", "dictionary-learning")
# `ae.pt` is torch's own format. The service does not depend on torch; worker environments have it.
_AS_PICKLE = (
    "import sys, torch; from safetensors.torch import load_file; torch.save(load_file(sys.argv[1]), sys.argv[2])"
)


class NeedsTorchError(Exception):
    """The layout requires torch, which is not installed."""


def write(
    folder: Path, layout: str, folded: Autoencoder, feature_ids: Sequence[str], about: Mapping[str, Any]
) -> list[Path]:
    """Write a dictionary and return its files. `about` contains `model`, `hook_point` and any other metadata.

    Raises NeedsTorchError, OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = folder / "feature_ids.txt"
    names.write_text("".join(f"{name}\n" for name in feature_ids), encoding="utf-8")
    files = _saelens(folder, folded, about) if layout == "saelens" else _dictionary_learning(folder, folded, about)
    return [*files, names]


def _saelens(folder: Path, folded: Autoencoder, about: Mapping[str, Any]) -> list[Path]:
    d, m = folded.W_enc.shape
    hook_point = str(about["hook_point"])
    config = {
        "architecture": "standard",
        "d_in": d,
        "d_sae": m,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "model_name": about["model"],
            "hook_name": f"blocks.{layer_of(hook_point)}.{KINDS[kind_of(hook_point)].transformer_lens}",
            "featurewatch": dict(about),
        },
    }
    weights = folder / "sae_weights.safetensors"
    save_file(dict(zip(folded._fields, folded, strict=True)), weights)
    return [_write_json(folder / "cfg.json", config), weights]


def _dictionary_learning(folder: Path, folded: Autoencoder, about: Mapping[str, Any]) -> list[Path]:
    if importlib.util.find_spec("torch") is None:
        raise NeedsTorchError
    unit = unit_rows(folded)
    d, m = unit.W_enc.shape
    tensors: dict[str, Floats] = {
        "bias": unit.b_dec,
        "encoder.weight": unit.W_enc.T.copy(),
        # It subtracts the decoder bias before encoding.
        "encoder.bias": unit.b_enc + unit.b_dec @ unit.W_enc,
        "decoder.weight": unit.W_dec.T.copy(),
    }
    config = {
        "trainer": {"dict_class": "AutoEncoder", "activation_dim": d, "dict_size": m, "lm_name": about["model"]},
        "buffer": {"d_submodule": d, "io": "out"},
        "featurewatch": dict(about),
    }
    weights = folder / "ae.pt"
    with tempfile.TemporaryDirectory() as place:
        plain = Path(place) / "ae.safetensors"
        save_file(tensors, plain)
        command = [sys.executable, "-c", _AS_PICKLE, str(plain), str(weights)]
        subprocess.run(command, check=True)  # noqa: S603 fixed arguments
    return [_write_json(folder / "config.json", config), weights]


def _write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    return path
