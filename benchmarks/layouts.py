"""Do SAELens and dictionary_learning read what `featurewatch export dictionary` writes?

    python -m benchmarks.layouts --seed 0 --json

A planted family is fitted and its dictionary exported in both layouts. The tools load the folders in a separate
environment and encode held-out activations. Their output is compared with the service's own formulas, and the source's
read-out with the family's code.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from safetensors.numpy import load_file, save_file

from benchmarks.fit_rounds import LAYOUTS_REQUIREMENTS, peers_environment
from benchmarks.planted_data import HOOK_POINT, make_lineage, write_checkpoint
from benchmarks.runs import succeeded
from featurewatch.service.client import Client
from featurewatch.service.dictionaries import layouts
from featurewatch.service.dictionaries.folding import Floats, fold, unit_rows
from featurewatch.workers.demo.installation import Installation

OPTIONS = {"n_features": 160, "k": 6, "steps": 2000, "batch_size": 512, "learning_rate": 0.003, "seed": 0}


def main() -> None:
    """Print the results; exit with code 1 if a tool reads something else."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--python", type=Path, help="Python of an environment that has both tools.")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    python = asked.python or peers_environment(cache / "featurewatch" / "layouts", (), LAYOUTS_REQUIREMENTS)
    with tempfile.TemporaryDirectory() as place:
        found = measure(Path(place), asked.seed, python)
    if asked.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name}: {value}")
    sys.exit(0 if found["saelens_error"] < 1e-3 and found["dictionary_learning_error"] < 1e-3 else 1)


def measure(folder: Path, seed: int, python: Path) -> dict[str, Any]:
    """Fit, export, load by the tools, compare. Errors are relative to the largest value."""
    lineage = make_lineage(seed, n_checkpoints=2, n_positions=20_000, width=128, n_planted=128)
    write_checkpoint(lineage, 1, folder / "v1")
    shards = sorted((folder / "v1").glob(f"{HOOK_POINT}-*.safetensors"))
    x = np.concatenate([load_file(shard)["activations"] for shard in shards]).astype(np.float32)
    (folder / "data").mkdir()
    with Installation(folder / "data", [folder]) as installation, Client(installation.url) as client:
        client.create_family("planted", [HOOK_POINT], crosscoder=OPTIONS)
        made = client.register("planted", name="v1", uri=f"activations+file://{folder}/v1")
        succeeded(client, made["run"]["id"], "v1")
        kept = load_file(client.download_dictionary("planted", "v1", folder / "source.safetensors"))
        ids = client.code_ids("planted")
        code = scipy.sparse.load_npz(client.download_codes("planted", folder / "codes.npz")).toarray()
    folded = fold(kept)
    about = {"model": "planted", "family": "planted", "checkpoint": "v1", "hook_point": HOOK_POINT}
    for layout in layouts.LAYOUTS:
        layouts.write(folder / layout, layout, folded, ids, about)
    some = np.ascontiguousarray(x[::7])
    save_file({"x": some}, folder / "x.safetensors")
    command = [str(python), "-m", "benchmarks.peers.layouts", str(folder)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
    seen = load_file(folder / "seen.safetensors")
    ours = folded.encode(some)
    back, unit = folded.decode(ours), unit_rows(folded)
    truth = code[::7]
    return {
        "saelens_error": max(_error(seen["saelens_f"], ours), _error(seen["saelens_x"], back)),
        "dictionary_learning_error": max(_error(seen["dl_f"], unit.encode(some)), _error(seen["dl_x"], back)),
        "fvu_of_the_code": _fvu(some, truth @ folded.W_dec + folded.b_dec),
        "fvu_of_the_read_out": _fvu(some, back),
        "active_in_the_code": float((truth > 0).sum(1).mean()),
        "active_in_the_read_out": float((ours > 0).sum(1).mean()),
        "median_correlation": float(np.median(_correlations(truth, ours))),
    }


def _error(seen: Floats, ours: Floats) -> float:
    return float(np.abs(seen - ours).max() / np.abs(ours).max())


def _fvu(x: Floats, back: Floats) -> float:
    return float(np.square(x - back).sum() / np.square(x - x.mean(0)).sum())


def _correlations(a: Floats, b: Floats) -> Floats:
    """Mean correlation of the columns that vary in both."""
    a, b = a - a.mean(0), b - b.mean(0)
    norms = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    return (a * b).sum(0)[norms > 0] / norms[norms > 0]


if __name__ == "__main__":
    main()
