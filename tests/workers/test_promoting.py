"""Promoted tokens of new features, by a real worker: from a tiny model, and the reason where there are none."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from featurewatch.service.models import Checkpoint, Feature, Source
from tests.unit.activations.tiny import TEXTS, byte_level, save_checkpoint
from tests.workers.conftest import Installation
from tests.workers.test_calibrating import family, planted

FIT = {"n_features": 24, "k": 3, "steps": 60, "batch_size": 64, "learning_rate": 0.005}


def corpus(folder: Path) -> dict[str, str]:
    lines = [json.dumps({"text": text}) for text in TEXTS * 6]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return {"uri": f"file://{folder}/corpus.jsonl"}


def features(installation: Installation) -> list[Feature]:
    with installation.database.read() as session:
        found = session.query(Feature).order_by(Feature.number).all()
        for one in found:
            assert one.promoted_tokens == [token for token, _ in one.logits.get("promoted", [])]
        return found


def quality(installation: Installation, name: str) -> dict:
    with installation.database.read() as session:
        return session.query(Checkpoint).filter_by(name=name).one().quality or {}


def test_of_a_model(installation: Installation, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "model")
    family(
        installation, "tiny", [folder.as_uri()], hook_points=["resid_post.1", "resid_post.2"], corpus=corpus(tmp_path),
        crosscoder=FIT,
    )  # fmt: skip
    assert quality(installation, "v1")["logit_lens"] == {"hook_point": "resid_post.2"}
    with installation.database.read() as session:
        place = session.query(Source).filter_by(hook_point="resid_post.2").one().dictionary
    rows = load_file(installation.artifacts.path(str(place)))["decoder"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    gain, head = model.model.norm.weight.detach(), model.lm_head.weight.detach()
    logits = rows / rows.norm(dim=1, keepdim=True) * gain @ head.T
    tokenizer = byte_level()
    checked = 0
    for one in features(installation):
        if not rows[one.number].norm():
            assert one.logits == {}
            continue
        best = logits[one.number].topk(10).indices.tolist()
        assert one.promoted_tokens == [tokenizer.decode([token]) for token in best]
        value = logits[one.number].max() - logits[one.number].mean()
        assert abs(one.logits["promoted"][0][1] - float(value)) < 2e-3
        assert one.logits["demoted"][0][0] == tokenizer.decode([int(logits[one.number].argmin())])
        checked += 1
    assert checked > 10


def test_of_activations_there_are_none(installation: Installation, tmp_path: Path) -> None:
    planted(installation, tmp_path)
    assert "so it has no head" in quality(installation, "v1")["logit_lens"]["none"]
    assert {tuple(one.promoted_tokens) for one in features(installation)} == {()}


def test_an_encoder_has_none(installation: Installation, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "model", "bert", tokenizer="word_piece")
    torch.manual_seed(0)
    body = {"hook_points": ["resid_post.1"], "corpus": corpus(tmp_path), "crosscoder": FIT}
    family(installation, "tiny", [folder.as_uri()], **body)
    assert "bert" in quality(installation, "v1")["logit_lens"]["none"]
    assert {tuple(one.promoted_tokens) for one in features(installation)} == {()}
