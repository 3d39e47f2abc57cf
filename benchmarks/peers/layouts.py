"""Runs in the environment of the public tools: loads both exported layouts and encodes activations."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def main(folder: Path) -> None:
    """`saelens/`, `dictionary-learning/` and `x.safetensors` -> `seen.safetensors`."""
    from sae_lens import SAE  # noqa: PLC0415  # imports `datasets`, which checks for a real zstandard

    # The other package imports nnsight, pinned to an old release, and zstandard for harvesting alone.
    harvest: Any = ModuleType("nnsight")
    harvest.LanguageModel = object
    sys.modules |= {"nnsight": harvest, "zstandard": ModuleType("zstandard")}
    from dictionary_learning.utils import load_dictionary  # noqa: PLC0415

    x = load_file(folder / "x.safetensors")["x"]
    sae = SAE.load_from_disk(folder / "saelens")
    dictionary, _ = load_dictionary(str(folder / "dictionary-learning"), "cpu")
    with torch.no_grad():
        f, g = sae.encode(x), dictionary.encode(x)
        seen = {"saelens_f": f, "saelens_x": sae.decode(f), "dl_f": g, "dl_x": dictionary.decode(g)}
    save_file({name: tensor.contiguous() for name, tensor in seen.items()}, folder / "seen.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
