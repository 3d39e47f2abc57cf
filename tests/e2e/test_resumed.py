"""What a killed attempt left behind, and what a worker keeps of its own, is verified before it is used again.

Damage is made good without a word to the user but in the log: the part is fetched, read or trained again.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import save_file

from featurewatch.service.models import Checkpoint, Source
from featurewatch.workers.activations.harvest import shards
from featurewatch.workers.activations.models import finetune
from featurewatch.workers.errors import REFUSALS, RunError
from featurewatch.workers.pipelines.runs import signature
from featurewatch.workers.pipelines.shared import promoted_tokens
from featurewatch.workers.pipelines.stages import nulls
from tests.e2e.inprocess import HOOK, Installation, failed_by
from tests.e2e.parts import OPTIONS
from tests.unit.activations.tiny import in_place, weights_of, write_activations, zero


def read_shards(installation: Installation, name: str) -> dict[str, bytes]:
    """The activations of a checkpoint, by file."""
    source = installation.row(Source, checkpoint_id=installation.row(Checkpoint, name=name).id)
    folder = installation.artifacts.path(source.activations)
    return {file.name: file.read_bytes() for file in sorted(folder.glob(f"{HOOK}-*"))}


@pytest.mark.parametrize(("seed", "lost"), [(50, "before the manifest"), (51, "before the artifact")])
def test_shards_of_a_killed_attempt_are_damaged(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, seed: int, lost: str
) -> None:
    """Values alone: names, sizes and headers are what they were."""
    name, folder = installation.fresh_model(seed=seed)
    copy = shutil.copytree(folder, installation.folder / f"{name}-whole")
    tensors = weights_of(copy / "model.safetensors") | {"unused": torch.ones(3)}
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert installation.judge(f"{name}-whole", copy.as_uri(), parent="v1")["state"] == "succeeded"

    def killed(*_: Any) -> None:
        raise RuntimeError("killed")

    run_id = installation.register(name, folder.as_uri(), parent="v1")
    with monkeypatch.context() as patch:
        if lost == "before the manifest":
            patch.setattr(sys.modules["featurewatch.workers.activations.harvest.run"], "_finish", killed)
        else:
            patch.setattr(sys.modules["featurewatch.workers.pipelines.stages.harvest"].shutil, "move", killed)
        failed_by(installation.work(run_id), "internal", "killed")
    partial = list((installation.settings.data_dir / "partial").glob(f"*activations*/{HOOK}-*"))
    assert partial
    for file in partial:
        in_place(file, zero)
    run = installation.retry(run_id)
    assert run["state"] == "succeeded", run["error"]
    assert read_shards(installation, name) == read_shards(installation, f"{name}-whole")
    statuses = [installation.checkpoint(which)["quality"]["statuses"] for which in (name, f"{name}-whole")]
    assert statuses[0] == statuses[1]


def test_a_fetched_copy_is_damaged(installation: Installation) -> None:
    name, folder = installation.fresh_model(seed=52)
    uri = f"memory://{installation.folder.name}/{name}"
    fs, base = fsspec.core.url_to_fs(uri)
    for file in folder.iterdir():
        fs.put_file(str(file), f"{base}/{file.name}")
    assert installation.judge(name, uri, parent="v1")["state"] == "succeeded"
    for file in (installation.settings.cache_dir / "fetched").rglob("model.safetensors"):
        in_place(file, zero)
    assert installation.judge(f"{name}b", uri, parent="v1")["state"] == "succeeded"
    digests = [installation.checkpoint(which)["content_digest"] for which in (name, f"{name}b")]
    assert digests[0] == digests[1]


def changing(monkeypatch: pytest.MonkeyPatch, module: Any, function: str, file: Path) -> list[int]:
    """Have a file changed at the first call of a function, and put back after it; the calls, as they come."""
    calls: list[int] = []
    original, whole = getattr(module, function), file.read_bytes()

    def call(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            return original(*arguments, **named)
        in_place(file, zero)
        try:
            return original(*arguments, **named)
        finally:
            in_place(file, lambda data: data.__setitem__(slice(None), whole))

    monkeypatch.setattr(module, function, call)
    return calls


@pytest.mark.parametrize(
    ("null", "module", "function"), [("repeat", shards, "read_batch"), ("finetune", finetune, "_loss")]
)
def test_a_file_is_changed_while_a_null_is_made(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, null: str, module: Any, function: str
) -> None:
    """An error is not the same as an unavailable null: the run fails at once, and other nulls do not hide it."""
    body = {"checkpoint": "v1", "nulls": [null, "halves"], "finetune": {"steps": 2}}
    with monkeypatch.context() as patch:
        calls = changing(patch, module, function, installation.model / "model.safetensors")
        answer = installation.client.post("/v1/families/smol/calibrations", json=body)
        assert answer.status_code == 202, answer.text
        run = installation.work(answer.json()["id"])
    failed_by(run, "content-changed", "model.safetensors")
    assert len(calls) == 1, "nothing more was read"
    assert not list((installation.settings.data_dir / "partial").glob("*calibrations*"))


@pytest.mark.parametrize("code", sorted(REFUSALS))
def test_a_refusal_ends_a_run_that_could_do_without(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """A calibration has other nulls, and labels do without the logit lens; but not for such a reason."""

    def refuse(*_: Any, **__: Any) -> None:
        raise RunError(code, "refused")

    with monkeypatch.context() as patch:
        patch.setattr(nulls, "harvest", refuse)
        body = {"checkpoint": "v1", "nulls": ["repeat", "halves"]}
        answer = installation.client.post("/v1/families/smol/calibrations", json=body)
        failed_by(installation.work(answer.json()["id"]), code)
    name, folder = installation.fresh_model(seed=60)
    with monkeypatch.context() as patch:
        patch.setattr(promoted_tokens, "read_unembedding", refuse)
        family = installation.make_family(f"refused-{code}")
        failed_by(installation.judge(name, folder.as_uri(), family=family), code)


def test_a_file_is_changed_while_a_signature_is_read(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": f"The fox number {n} jumps.", "label": n % 2 == 0} for n in range(40)]
    family = installation.make_family("foxes")
    assert installation.judge("v1", installation.model.as_uri(), family=family)["state"] == "succeeded"
    answer = installation.client.post(f"/v1/families/{family}/signatures", json={"name": "foxes", "rows": rows})
    assert answer.status_code in (201, 202), answer.text
    run_id = answer.json()["runs"][0]["id"]
    batches: list[float] = []
    with monkeypatch.context() as patch:
        changing(patch, signature, "open_prompts", installation.model / "model.safetensors")
        patch.setattr(signature, "read_prompts", counting(signature.read_prompts, batches))
        failed_by(installation.work(run_id), "content-changed", "model.safetensors")
    assert not batches, "it is noticed before the first batch"
    assert installation.retry(run_id)["state"] == "succeeded"


def counting(read: Any, batches: list[float]) -> Any:
    """read_prompts that tells how far it got."""
    return lambda *arguments, on_progress, **named: read(*arguments, on_progress=batches.append, **named)


def test_precomputed_contrast_activations_are_replaced_once_they_are_hashed(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept under the digest of a file is what that file held."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(600, 16, generator=g).relu() @ torch.randn(16, 16, generator=g)
    folder = write_activations(installation.folder / "brought", {HOOK: x}, shard=200)
    (folder / "contrast").mkdir()
    file = folder / "contrast" / "seen.safetensors"
    save_file({HOOK: x[:40]}, file)
    body = {"name": "brought", "hook_points": [HOOK], "crosscoder": OPTIONS}
    assert installation.client.post("/v1/families", json=body).status_code == 201
    assert installation.judge("b1", f"activations+{folder.as_uri()}", family="brought")["state"] == "succeeded"
    rows = [{"text": f"row {n}", "label": n % 2 == 0} for n in range(40)]
    answer = installation.client.post("/v1/families/brought/signatures", json={"name": "seen", "rows": rows})
    run_id, digest_of = answer.json()["runs"][0]["id"], signature.sha256

    def replaced(path: Path) -> str:
        digest = digest_of(path)
        save_file({HOOK: -x[:40]}, path)
        return digest

    with monkeypatch.context() as patch:
        patch.setattr(signature, "sha256", replaced)
        failed_by(installation.work(run_id), "content-changed", "seen.safetensors")
    save_file({HOOK: x[:40]}, file)
    assert installation.retry(run_id)["state"] == "succeeded"
