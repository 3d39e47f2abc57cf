"""A short fine-tune of a tiny model."""

from pathlib import Path
from typing import Any

import pytest
import torch

from featurewatch.workers.activations.models.finetune import SUMMARY, Training, fine_tune
from featurewatch.workers.errors import RunError
from tests.unit.activations.tiny import TEXTS, in_place, save_checkpoint, weights_of, zero

HALVES = (TEXTS[:4], TEXTS[4:])


def run(folder: Path, out: Path, *, steps: int = 30, rate: float = 3e-3, **options: Any) -> dict[str, float]:
    training = Training(steps=steps, learning_rate=rate, batch_documents=2, context_length=48, seed=1)
    return fine_tune(
        folder.as_uri(), None, training, options.pop("texts", HALVES), out,
        roots=(folder.parent,), device="cpu", cache_dir=folder.parent / "cache", **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


def test_the_loss_falls_and_the_same_seed_gives_the_same_weights(model: Path, tmp_path: Path) -> None:
    first, again = run(model, tmp_path / "a"), run(model, tmp_path / "b")
    assert first["loss_after"] < 0.8 * first["loss_before"]
    assert first == again
    weights = [weights_of(tmp_path / name / "model.safetensors") for name in "ab"]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    before = weights_of(model / "model.safetensors")
    assert before.keys() == weights[0].keys()
    assert any(not torch.equal(value, weights[0][key]) for key, value in before.items())


def test_a_finished_one_is_kept(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    summary = run(model, out, steps=2)

    def never() -> None:
        raise AssertionError("it began again")

    assert run(model, out, steps=2, check=never) == summary
    (out / SUMMARY).unlink()  # as a killed attempt leaves it: the weights may be half there
    (out / "model.safetensors").write_bytes(b"half")
    assert run(model, out, steps=2) == summary
    assert weights_of(out / "model.safetensors")


def test_a_finished_one_that_is_damaged_is_trained_again(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    summary = run(model, out, steps=2)
    whole = (out / "model.safetensors").read_bytes()
    in_place(out / "model.safetensors", zero)
    assert run(model, out, steps=2) == summary
    assert (out / "model.safetensors").read_bytes() == whole


def test_it_stops_where_it_is_told_to(model: Path, tmp_path: Path) -> None:
    calls = iter(range(1000))

    def check() -> None:
        if next(calls) == 12:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(model, tmp_path / "x", check=check)
    assert not (tmp_path / "x").exists()


def test_encoders_and_corpora_without_halves_are_refused(model: Path, tmp_path: Path) -> None:
    encoder = save_checkpoint(tmp_path / "bert", "bert", tokenizer="word_piece")
    with pytest.raises(RunError) as refused:
        run(encoder, tmp_path / "x")
    assert refused.value.code == "no-causal-head"
    with pytest.raises(RunError) as refused:
        run(model, tmp_path / "x", texts=(TEXTS[:1], []))
    assert refused.value.code == "no-text"


def test_a_rate_that_breaks_the_model_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError) as refused:
        run(model, tmp_path / "x", rate=1e20)
    assert refused.value.code == "training-diverged"
