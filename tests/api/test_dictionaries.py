"""Dictionaries of sources over REST, and as a sparse autoencoder on raw activations."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from fastapi.testclient import TestClient
from safetensors.numpy import load, load_file, save_file

from benchmarks.fit_rounds import LAYOUTS_REQUIREMENTS, ROOT, peers_environment
from featurewatch.service.config import Settings
from featurewatch.service.dictionaries import layouts
from featurewatch.service.dictionaries.folding import fold, unit_rows
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.crypto import SecretBox
from featurewatch.service.kit.db import Database
from tests import filled
from tests.cli.blocks import blocks
from tests.filled import WIDTH, dictionary

WHERE = "/v1/families/smol/checkpoints/v2/dictionary"


def test_a_dictionary_is_given_as_it_is_kept(client: TestClient, database: Database, artifacts: ArtifactStore) -> None:
    with database.write() as session:
        filled.fill(session, artifacts, SecretBox(Settings(secret_key="a secret of this test")))
    answer = client.get(WHERE, params={"hook_point": "resid_post.12"})
    assert answer.status_code == 200
    tensors = load(answer.content)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in dictionary(6).items()
    }
    assert 'filename="smol-v2-resid_post.12.safetensors"' in answer.headers["content-disposition"]
    again = client.get(WHERE, params={"hook_point": "resid_post.12"}, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")

    several = client.get(WHERE)
    assert several.status_code == 422
    assert "resid_post.12, resid_post.4" in several.json()["detail"]
    other = client.get(WHERE, params={"hook_point": "resid_post.5"})
    assert (other.status_code, other.json()["code"]) == (404, "no-dictionary")
    assert client.get(WHERE.replace("v2", "v3")).json()["code"] == "not-judged"


def test_folding_changes_nothing() -> None:
    """On raw activations the autoencoder reads and writes what the read-out and the decoder do on normalised ones."""
    kept, x = dictionary(40), np.random.default_rng(1).normal(size=(200, WIDTH)).astype(np.float32)
    folded = fold(kept)
    g = WIDTH**0.5 / float(kept["rms"])
    normalised = (x - kept["mean"]) * g
    read = np.maximum(normalised @ kept["readout"] + kept["readout_bias"], 0) / np.maximum(kept["readout_slope"], 0.25)
    np.testing.assert_allclose(folded.encode(x), read, rtol=1e-4, atol=1e-4)
    written = (read @ kept["decoder"] + kept["bias"]) / g + kept["mean"]
    np.testing.assert_allclose(folded.decode(folded.encode(x)), written, rtol=1e-4, atol=1e-3)

    kept["decoder"][7] = 0  # written nowhere here
    folded, unit = fold(kept), unit_rows(fold(kept))
    norms = np.linalg.norm(folded.W_dec, axis=1)
    np.testing.assert_allclose(np.linalg.norm(unit.W_dec, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(unit.encode(x), folded.encode(x) * norms, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(unit.decode(unit.encode(x)), folded.decode(folded.encode(x)), rtol=1e-4, atol=1e-2)
    assert not unit.encode(x)[:, 7].any()
    del kept["readout_slope"]  # as before slopes were kept
    assert fold(kept).encode(x).shape == (200, 40)


def test_saelens_and_dictionary_learning_load_their_layouts(tmp_path: Path) -> None:
    """The tools themselves, each release that the benchmarks name, in an environment beside this one."""
    folded, x = fold(dictionary(40)), np.random.default_rng(1).normal(size=(50, WIDTH)).astype(np.float32)
    about = {"model": "hf://org/v2", "family": "smol", "checkpoint": "v2", "hook_point": "resid_post.12"}
    for layout in layouts.LAYOUTS:
        files = layouts.write(tmp_path / layout, layout, folded, [f"F{i}" for i in range(40)], about)
        assert sorted(path.name for path in files) == sorted(path.name for path in (tmp_path / layout).iterdir())
        assert (tmp_path / layout / "feature_ids.txt").read_text().split()[39] == "F39"
    config = json.loads((tmp_path / "saelens" / "cfg.json").read_text())
    assert (config["d_in"], config["d_sae"], config["apply_b_dec_to_input"]) == (WIDTH, 40, False)
    assert config["metadata"]["hook_name"] == "blocks.12.hook_resid_post"
    config = json.loads((tmp_path / "dictionary-learning" / "config.json").read_text())["trainer"]
    assert (config["dict_class"], config["activation_dim"], config["dict_size"]) == ("AutoEncoder", WIDTH, 40)
    save_file({"x": x}, tmp_path / "x.safetensors")
    python = peers_environment(Path(sys.prefix) / "layouts", requirements=(), alone=LAYOUTS_REQUIREMENTS)
    # And the guide's lines, in the same process, for whose folders these are.
    (tmp_path / "v2-sae").symlink_to("saelens")
    (tmp_path / "v2-dl").symlink_to("dictionary-learning")
    guide = blocks(ROOT / "docs/guide-researcher.md", frozenset())
    (lines,) = (block.text for block in guide if block.text.startswith("from sae_lens"))
    script = "from pathlib import Path\nfrom benchmarks.peers import layouts\nlayouts.main(Path())\n" + lines
    script += "assert len(ids) == sae.cfg.d_sae == dictionary.dict_size == 40\n"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([str(python), "-c", script], check=True, cwd=tmp_path, env=environment)
    seen = load_file(tmp_path / "seen.safetensors")
    np.testing.assert_allclose(seen["saelens_f"], folded.encode(x), rtol=1e-5, atol=1e-4)
    unit = unit_rows(folded)
    np.testing.assert_allclose(np.linalg.norm(unit.W_dec, axis=1), 1, rtol=1e-5)  # else the tool scales everything
    np.testing.assert_allclose(seen["dl_f"], unit.encode(x), rtol=1e-4, atol=1e-3)
    for back in (seen["saelens_x"], seen["dl_x"]):
        np.testing.assert_allclose(back, folded.decode(folded.encode(x)), rtol=1e-4, atol=1e-2)
