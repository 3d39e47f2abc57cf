"""`featurewatch.Family` against a live service that has read a real (tiny) transformer."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModel, AutoTokenizer

from featurewatch import ClientError, Family
from featurewatch.service.dictionaries.folding import MIN_SLOPE
from featurewatch.workers.activations.models.loading import compute_dtype
from tests.e2e.parts import Service
from tests.unit.activations.tiny import save_checkpoint

HOOKS = ["resid_post.0", "resid_post.2"]
TEXTS = ["The quick brown fox keeps this secret.", "", "def add(a, b):\n    return a + b"]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[tuple[Family, Path]]:
    """A family of two judged checkpoints, whose weights lie in a folder."""
    folder = tmp_path_factory.mktemp("notebook")
    shutil.copyfile(sqlite_template, folder / "featurewatch.db")
    for seed, name in enumerate(("v1", "v2")):
        save_checkpoint(folder / name, seed=seed)
    options = {"n_features": 48, "k": 4, "steps": 60, "batch_size": 256, "seed": 0}
    with Service(folder, f"sqlite:///{folder}/featurewatch.db") as service:
        corpus = {"max_documents": 30, "context_length": 48}
        service.client.create_family("tiny", HOOKS, corpus=corpus, crosscoder=options)
        service.judge("tiny", "v1", f"file://{folder}/v1")
        service.judge("tiny", "v2", f"file://{folder}/v2", parent="v1")
        yield Family("tiny", client=service.client), folder


def test_tables_code_and_tensors(family: tuple[Family, Path]) -> None:
    tiny, _ = family
    assert tiny.checkpoints() == ["v1", "v2"]
    verdicts = tiny.trajectories()
    assert set(verdicts["checkpoint"]) == {"v1", "v2"}
    ids = tiny.feature_ids("v2")
    assert len(verdicts) == len(ids) + len(tiny.feature_ids("v1"))
    assert list(tiny.trajectories([ids[3]])["id"]) == [ids[3]] * 2
    schema = tiny.trajectories_table().schema
    assert schema.field("projection_ratio").metadata, "columns have their units"
    assert set(tiny.features()["id"]) == set(ids)
    assert set(tiny.sources()["hook_point"]) == set(HOOKS)

    codes = tiny.codes("v2")
    assert codes.format == "csr" and codes.shape[1] == len(ids) and codes.nnz > 0
    point = verdicts[(verdicts["checkpoint"] == "v2") & (verdicts["id"] == ids[0])].iloc[0]
    assert point["firings"] == codes[:, 0].nnz

    rows = tiny.decoder("v2", "resid_post.2")
    assert rows.shape == (len(ids), 32) and rows.dtype == torch.float32
    with pytest.raises(ClientError, match=r"resid_post\.0, resid_post\.2"):
        tiny.decoder("v2")


def test_texts_are_read_as_the_checkpoint_reads_them(family: tuple[Family, Path], tmp_path: Path) -> None:
    """By the formulas of the docs, on activations that transformers gives, from the file that the API gives."""
    tiny, folder = family
    found = tiny.encode(TEXTS, "v2", "resid_post.0")
    assert set(found.tokens["text"]) == {0, 2}, "an empty text has no token"
    assert "".join(found.tokens[found.tokens["text"] == 0]["token"]) == TEXTS[0]

    d = load_file(tiny.client.download_dictionary("tiny", "v2", tmp_path / "d", hook_point="resid_post.0"))
    dtype = compute_dtype("cpu")
    model = AutoModel.from_pretrained(folder / "v2", dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "v2")
    expected = []
    for text in (TEXTS[0], TEXTS[2]):
        encoded = tokenizer(text, return_tensors="pt", return_special_tokens_mask=True)
        with torch.no_grad():
            states = model(input_ids=encoded["input_ids"], output_hidden_states=True).hidden_states
        x = states[1][0].double().numpy()[encoded["special_tokens_mask"][0].numpy() == 0]
        normalised = (x - d["mean"]) * (32**0.5 / float(d["rms"]))
        read = np.maximum(normalised @ d["readout"].astype(np.float64) + d["readout_bias"], 0)
        expected.append(read / np.maximum(d["readout_slope"], MIN_SLOPE))
    np.testing.assert_allclose(found.codes.toarray(), np.concatenate(expected), rtol=1e-3, atol=1e-3)
    assert found.codes.nnz > 0

    strongest = found.feature_ids[int(found.codes.max(axis=0).toarray().argmax())]
    assert found.feature(strongest)["activation"].max() == pytest.approx(found.codes.max())
    # The same weights elsewhere, at another hook point, with the layers back that the first one had no need of.
    again = tiny.encode(TEXTS, "v2", "resid_post.2", uri=f"file://{folder}/v2")
    assert again.codes.shape == found.codes.shape and abs(again.codes - found.codes).max() > 0


def test_what_is_missing_is_named(family: tuple[Family, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, _ = family
    with pytest.raises(ClientError, match="no checkpoint v9"):
        tiny.encode(["x"], "v9", "resid_post.0")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ClientError, match=r"pip install 'featurewatch\[worker\] @ git\+https"):
        tiny.decoder("v2", "resid_post.0")
    with pytest.raises(ClientError, match=r"pip install 'featurewatch\[notebook\] @ git\+https"):
        tiny.trajectories()
