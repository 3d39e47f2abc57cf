"""Two tiny models with tokenizers, widths and depths of their own, in one family: the benchmark's small version."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.tokenizer_models import NORM
from benchmarks.tokenizers import FAMILY, HOOKS, SMALL, Pair, corpus_of, make, registration, score
from featurewatch.workers.activations.positions import Reader
from tests.e2e.parts import ONE_DATABASE, Service

OPTIONS = {"n_features": 48, "k": 3, "steps": 1200, "batch_size": 512, "learning_rate": 0.003, "seed": 0}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Pair]:
    folder = tmp_path_factory.mktemp("tokenizers") / "releases"
    return folder, make(folder, 7, documents=120, vocabularies=[400, 700], sizes=SMALL)


def _text(folder: Path, number: int) -> str:
    line = (folder / "corpus.jsonl").read_text().splitlines()[number]
    return str(json.loads(line)["text"])


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_models_carry_the_text_and_not_its_tokens(two: tuple[Path, Pair], version: str) -> None:
    """At every token the first layer holds the concepts of the text there, however it was cut."""
    folder, pair = two
    model = AutoModelForCausalLM.from_pretrained(folder / version, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / version)
    embeddings = model.get_input_embeddings().weight
    torch.testing.assert_close(embeddings.norm(dim=1), torch.full((len(embeddings),), NORM))
    held, truth = [], []
    for number in range(40):
        text = _text(folder, number)
        read = Reader(tokenizer, None).read([text], 128)[0]
        with torch.no_grad():
            seen = model.model(torch.from_numpy(read.ids)[None], output_hidden_states=True).hidden_states[1][0]
        held.append(seen[read.token][1:].double().numpy())  # the first token has none before it
        truth.append(pair.concepts.table((text, int(end)) for end in read.end).toarray()[1:])
    x, y = np.concatenate(held), np.concatenate(truth)
    x = np.c_[x, np.ones(len(x))]
    told = x @ np.linalg.lstsq(x, y, rcond=None)[0]
    correlation = np.array([np.corrcoef(told[:, c], y[:, c])[0, 1] for c in range(len(pair.concepts))])
    early, late = correlation[: pair.concepts.late[0]], correlation[pair.concepts.late[0] :]
    assert early.min() > 0.9
    assert np.median(late) < 0.9, "pairs are written later"


@ONE_DATABASE
def test_shared_concepts_are_carried(service: Service, two: tuple[Path, Pair]) -> None:
    built, pair = two
    folder = service.folder / "tokenizers"
    shutil.copytree(built, folder)
    service.client.create_family(FAMILY, HOOKS["v1"], corpus=corpus_of(folder), crosscoder=OPTIONS)
    for version in HOOKS:
        asked: dict[str, Any] = registration(folder, version)
        service.judge(FAMILY, asked.pop("name"), asked.pop("uri"), **asked)
    result = score(pair, service.client, folder)
    assert result["found_in_v1"] >= 0.85
    assert result["carried"] >= 0.8
    assert 0.5 < result["valid_share"] < 0.95
    assert result["valid_share_reported"] == pytest.approx(result["valid_share"], abs=0.01)
    paired = result["paired_with"]
    assert paired["resid_post.4"] == "resid_post.2"
    assert sorted(filter(None, paired.values())) == ["resid_post.0", "resid_post.2"]
    read = result["readability"]
    assert read["v1"]["resid_post.2"]["late"] > 0.8
    assert read["v2"]["resid_post.4"]["late"] > 0.8
