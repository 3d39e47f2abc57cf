"""Registering checkpoints: what is accepted, what is refused and why, and that a refusal changes nothing."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import save_file
from sqlalchemy import func, select

from featurewatch.service.kit.db import Database
from featurewatch.service.models import Bell, Checkpoint, Family, Run
from tests import factories
from tests.api.test_errors import check_problem
from tests.unit.checkpoints.raw import write_gguf

URL = "/v1/families/smol/checkpoints"


@pytest.fixture(autouse=True)
def family(client: TestClient) -> None:
    body = {"name": "smol", "hook_points": ["resid_post.1", "mlp_out.0"]}
    assert client.post("/v1/families", json=body).status_code == 201


def counts(database: Database) -> list[int]:
    with database.read() as session:
        return [session.scalar(select(func.count()).select_from(table)) for table in (Checkpoint, Run, Bell)]


def set_state(database: Database, name: str, state: str) -> None:
    with database.write() as session:
        session.scalars(select(Checkpoint).where(Checkpoint.name == name)).one().state = state


def model_folder(path: Path, seed: int = 0) -> Path:
    """A Hugging Face folder in structure: two layers, one safetensors file."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 2}))
    weights = np.random.default_rng(seed).normal(size=(16, 8)).astype(np.float32)
    layers = {f"model.layers.{number}.mlp.down_proj.weight": weights for number in range(2)}
    save_file({"model.embed_tokens.weight": weights, **layers}, path / "model.safetensors")
    return path


def activations_folder(path: Path, positions: int = 6, width: int = 4, **changes: Any) -> Path:
    """Precomputed activations for both hook points."""
    path.mkdir(parents=True)
    described = {}
    for name in ("resid_post.1", "mlp_out.0"):
        save_file({"activations": np.ones((positions - 2, width), np.float32)}, path / f"{name}-0.safetensors")
        save_file({"activations": np.ones((2, width), np.float32)}, path / f"{name}-1.safetensors")
        described[name] = {"d_model": width, "shards": [f"{name}-0.safetensors", f"{name}-1.safetensors"]}
    save_file({"document": np.zeros(positions, np.int64)}, path / "documents.safetensors")
    manifest = {
        "format": "featurewatch-activations/1",
        "model": "any",
        "positions": positions,
        "hook_points": described,
        "documents": "documents.safetensors",
    }
    (path / "manifest.json").write_text(json.dumps(manifest | changes))
    return path


def test_register(client: TestClient, database: Database) -> None:
    response = client.post(URL, json={"name": "v1", "uri": "hf://org/model@main", "metadata": {"job": 7}})
    assert response.status_code == 202
    run, checkpoint = response.json()["run"], response.json()["checkpoint"]
    assert response.headers["location"] == f"/v1/runs/{run['id']}"
    assert int(response.headers["retry-after"]) > 0
    assert run["state"] == "queued" and run["checkpoint"] == "v1" and run["family"] == "smol"
    assert checkpoint["state"] == "registered" and checkpoint["parent"] is None
    assert checkpoint["hook_points"] == ["resid_post.1", "mlp_out.0"] and checkpoint["metadata"] == {"job": 7}
    assert client.get(f"{URL}/v1").json() == checkpoint
    assert client.get(response.headers["location"]).json() == run
    assert counts(database) == [1, 1, 1]


def test_same_content_again_is_the_same_run(client: TestClient, database: Database) -> None:
    body = {"name": "v1", "uri": "hf://org/model"}
    first = client.post(URL, json=body).json()
    again = client.post(URL, json=body | {"metadata": {"job": 8}})
    assert again.status_code == 200
    assert again.json() == first
    assert counts(database) == [1, 1, 1]
    for change in (
        {"uri": "hf://org/other"},
        {"fit": "refit"},
        {"hook_points": ["mlp_out.0"]},
        {"adapter": "hf://a/b"},
    ):
        check_problem(client.post(URL, json=body | change), 409, "name-used")
    assert counts(database) == [1, 1, 1]


def test_same_bytes_elsewhere_are_the_same_content(client: TestClient, tmp_path: Path) -> None:
    one, same, other = (model_folder(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert client.post(URL, json={"name": "v1", "uri": one.as_uri()}).status_code == 202
    assert client.post(URL, json={"name": "v1", "uri": same.as_uri()}).status_code == 200
    check_problem(client.post(URL, json={"name": "v1", "uri": other.as_uri()}), 409, "name-used")


def test_parents_chain(client: TestClient, database: Database) -> None:
    for name in ("v1", "v2", "v3"):
        client.post(URL, json={"name": name, "uri": f"hf://org/{name}"})
    set_state(database, "v3", "failed")
    client.post(URL, json={"name": "v4", "uri": "hf://org/v4"})
    client.post(URL, json={"name": "side", "uri": "hf://org/side", "parent": "v1"})
    parents = {row["name"]: row["parent"] for row in client.get(URL).json()["data"]}
    assert parents == {"v1": None, "v2": "v1", "v3": "v2", "v4": "v2", "side": "v1"}
    # Sent again, the default parent is the one it got then, not the newest of today.
    assert client.post(URL, json={"name": "v2", "uri": "hf://org/v2"}).status_code == 200
    assert client.post(URL, json={"name": "v2", "uri": "hf://org/v2", "parent": "v1"}).status_code == 200
    check_problem(client.post(URL, json={"name": "v2", "uri": "hf://org/v2", "parent": "v4"}), 409, "name-used")


def test_parents_refused(client: TestClient, database: Database) -> None:
    client.post(URL, json={"name": "v1", "uri": "hf://org/v1"})
    check_problem(client.post(URL, json={"name": "v2", "uri": "hf://o/v2", "parent": "v0"}), 422, "unknown-parent")
    check_problem(client.post(URL, json={"name": "v2", "uri": "hf://o/v2", "parent": "v2"}), 422, "unknown-parent")
    set_state(database, "v1", "failed")
    check_problem(client.post(URL, json={"name": "v2", "uri": "hf://o/v2", "parent": "v1"}), 422, "parent-failed")
    assert counts(database) == [1, 1, 1]


def test_failed_name_is_free_for_other_content(client: TestClient, database: Database) -> None:
    first = client.post(URL, json={"name": "v1", "uri": "hf://org/broken"}).json()
    client.post(URL, json={"name": "v2", "uri": "hf://org/v2"})
    set_state(database, "v1", "failed")
    # The same content would fail in the same way: it is the same run, which may be retried.
    assert client.post(URL, json={"name": "v1", "uri": "hf://org/broken"}).json()["run"]["id"] == first["run"]["id"]
    # v2 descends from v1, so it cannot become its parent.
    check_problem(client.post(URL, json={"name": "v1", "uri": "hf://o/x", "parent": "v2"}), 422, "parent-cycle")
    again = client.post(URL, json={"name": "v1", "uri": "hf://org/fixed"})
    assert again.status_code == 202
    assert again.json()["checkpoint"]["id"] == first["checkpoint"]["id"]
    assert again.json()["checkpoint"]["parent"] is None
    assert again.json()["run"]["id"] != first["run"]["id"]
    assert client.get(f"{URL}/v1").json()["run"]["id"] == again.json()["run"]["id"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"uri": "file:///etc"}, "path-refused"),
        ({"uri": "file://relative/x"}, "path-refused"),
        ({"uri": "activations+file:///etc"}, "path-refused"),
        ({"uri": "/plain/path"}, "uri-unsupported"),
        ({"uri": "http://169.254.169.254/x"}, "uri-unsupported"),
        ({"uri": "simplecache::file:///etc"}, "uri-unsupported"),
        ({"uri": "s3://bucket::file:///etc"}, "uri-unsupported"),
        ({"uri": "hf://org/../x"}, "uri-unsupported"),
        ({"uri": "activations+s3://b/x", "adapter": "hf://a/b"}, "uri-unsupported"),
        ({"adapter": "file:///etc"}, "path-refused"),
        ({"hook_points": ["attn_out.7"]}, "hook-point-not-in-family"),
        ({"hook_points": ["nonsense"]}, "invalid-request"),
        ({"fit": "never"}, "invalid-request"),
        ({"colour": 1}, "invalid-request"),
        ({"name": "a/b"}, "invalid-request"),
    ],
)
def test_refused_requests(client: TestClient, database: Database, change: dict, code: str) -> None:
    check_problem(client.post(URL, json={"name": "v1", "uri": "hf://org/model"} | change), 422, code)
    assert counts(database) == [0, 0, 0]


@pytest.mark.parametrize(
    "uri", ["s3://bucket/model", "gs://b/m", "activations+s3://b/a", "hf://gpt2", "hf://o/m@refs/pr/1"]
)
def test_uris_out_of_sight_are_left_to_the_workers(client: TestClient, uri: str) -> None:
    assert client.post(URL, json={"name": "v1", "uri": uri}).status_code == 202


def test_root_that_only_workers_see(client: TestClient, app, tmp_path: Path) -> None:
    app.state.settings = app.state.settings.model_copy(update={"roots": "/only/on/workers"})
    assert client.post(URL, json={"name": "v1", "uri": "file:///only/on/workers/v1"}).status_code == 202
    check_problem(client.post(URL, json={"name": "v2", "uri": "file:///only/v1"}), 422, "path-refused")


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 5)


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")


def disguised_pickle(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04" + b"x" * 100)


def one_layer(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"text_config": {"num_hidden_layers": 1}}))


def index_naming(name: str):
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))

    return change


def link_out(folder: Path) -> None:
    (folder / "tokenizer.json").symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("damage", "code", "says"),
    [
        (only_pickles, "unsafe-format", "pytorch_model.bin"),
        (disguised_pickle, "unsafe-format", "model.safetensors"),
        (lambda folder: truncate(folder / "model.safetensors"), "truncated-file", "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "truncated-file", "header"),
        (lambda folder: (folder / "model.safetensors").unlink(), "weights-missing", "model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "model-missing", "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "truncated-file", "config.json"),
        (one_layer, "unknown-hook-point", "resid_post.0 to resid_post.0"),
        (index_naming("a-1.safetensors"), "shard-missing", "a-1.safetensors"),
        (index_naming("../v2/model.safetensors"), "path-escapes", "../v2"),
        (index_naming("pytorch_model.bin"), "unsafe-format", "pytorch_model.bin"),
        (link_out, "path-refused", "tokenizer.json"),
    ],
)
def test_unusable_models(client: TestClient, database: Database, tmp_path: Path, damage, code: str, says: str) -> None:
    folder = model_folder(tmp_path / "v1")
    damage(folder)
    document = check_problem(client.post(URL, json={"name": "v1", "uri": folder.as_uri()}), 422, code)
    assert says in document["detail"]
    assert counts(database) == [0, 0, 0]


def test_paths_that_are_no_models(client: TestClient, tmp_path: Path) -> None:
    check_problem(client.post(URL, json={"name": "v1", "uri": (tmp_path / "no").as_uri()}), 422, "model-missing")
    for name, content, code in (
        ("a.txt", b"hello", "model-missing"),
        ("a.pt", b"PK", "unsafe-format"),
        ("a.gguf", b"GGU", "truncated-file"),
    ):
        (tmp_path / name).write_bytes(content)
        check_problem(client.post(URL, json={"name": "v1", "uri": (tmp_path / name).as_uri()}), 422, code)
    write_gguf(tmp_path / "b.gguf")
    assert client.post(URL, json={"name": "v1", "uri": (tmp_path / "b.gguf").as_uri()}).status_code == 202


def test_adapters(client: TestClient, tmp_path: Path) -> None:
    body = {"name": "v1", "uri": "hf://org/model", "adapter": (tmp_path / "adapter").as_uri()}
    check_problem(client.post(URL, json=body), 422, "model-missing")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    check_problem(client.post(URL, json=body), 422, "adapter-missing")
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(b"\x80\x04N.")
    check_problem(client.post(URL, json=body), 422, "unsafe-format")
    save_file({"a.lora_A.weight": np.ones((2, 2), np.float32)}, tmp_path / "adapter" / "adapter_model.safetensors")
    assert "peft_type" in check_problem(client.post(URL, json=body), 422, "adapter-unsupported")["detail"]
    config = {"peft_type": "LORA", "r": 2, "target_modules": ["a"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    assert client.post(URL, json=body).status_code == 202


def no_hook_point(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["hook_points"]["mlp_out.0"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def shard_named(name: str):
    def change(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["hook_points"]["mlp_out.0"]["shards"][1] = name
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return change


def shard_of(array: np.ndarray):
    return lambda folder: save_file({"activations": array}, folder / "mlp_out.0-1.safetensors")


@pytest.mark.parametrize(
    ("damage", "code", "says"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "manifest-missing", "manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "truncated-file", "manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text('{"format": "x"}'), "manifest-invalid", "format"),
        (no_hook_point, "unknown-hook-point", "mlp_out.0"),
        (lambda folder: (folder / "mlp_out.0-1.safetensors").unlink(), "shard-missing", "mlp_out.0-1"),
        (lambda folder: truncate(folder / "mlp_out.0-1.safetensors"), "truncated-file", "truncated"),
        (shard_named("../secret.safetensors"), "path-escapes", "secret"),
        (shard_named("/etc/x.safetensors"), "path-escapes", "/etc"),
        (shard_named("mlp_out.0-1.bin"), "unsafe-format", "mlp_out.0-1.bin"),
        (shard_of(np.ones((2, 5), np.float32)), "wrong-width", "[2, 5]"),
        (shard_of(np.ones((2, 4), np.float64)), "wrong-dtype", "F64"),
        (shard_of(np.ones((3, 4), np.float32)), "wrong-positions", "7"),
        (lambda folder: (folder / "documents.safetensors").unlink(), "shard-missing", "documents"),
        (
            lambda folder: save_file({"document": np.zeros(5, np.int64)}, folder / "documents.safetensors"),
            "wrong-positions",
            "documents",
        ),
    ],
)
def test_unusable_activations(
    client: TestClient, database: Database, tmp_path: Path, damage, code: str, says: str
) -> None:
    folder = activations_folder(tmp_path / "acts")
    damage(folder)
    body = {"name": "v1", "uri": f"activations+{folder.as_uri()}"}
    assert says in check_problem(client.post(URL, json=body), 422, code)["detail"]
    assert counts(database) == [0, 0, 0]


def test_activations_must_be_the_familys(client: TestClient, database: Database, tmp_path: Path) -> None:
    with database.write() as session:
        family = session.scalars(select(Family)).one()
        family.positions = {"digest": "x", "count": 6, "artifact": "p", "documents": None}
        first = factories.checkpoint(session, family, "v0")
        factories.source(session, first, "resid_post.1", 4)
    good = activations_folder(tmp_path / "good")
    assert client.post(URL, json={"name": "v1", "uri": f"activations+{good.as_uri()}"}).status_code == 202
    longer = activations_folder(tmp_path / "longer", positions=7)
    document = check_problem(
        client.post(URL, json={"name": "v2", "uri": f"activations+{longer.as_uri()}"}), 422, "wrong-positions"
    )
    assert "7" in document["detail"] and "6" in document["detail"]
    wider = activations_folder(tmp_path / "wider", width=5)
    check_problem(client.post(URL, json={"name": "v2", "uri": f"activations+{wider.as_uri()}"}), 422, "wrong-width")


def test_unknown_ones(client: TestClient) -> None:
    check_problem(client.get(f"{URL}/v9"), 404, "unknown-checkpoint")
    check_problem(
        client.post("/v1/families/no/checkpoints", json={"name": "a", "uri": "hf://a/b"}), 404, "unknown-family"
    )


def test_list_pages_and_states(client: TestClient, database: Database) -> None:
    for number in range(5):
        client.post(URL, json={"name": f"v{number}", "uri": f"hf://o/{number}"})
    set_state(database, "v0", "judged")
    first = client.get(f"{URL}?limit=3").json()
    rest = client.get(f"{URL}?limit=3&cursor={first['next_cursor']}").json()
    assert [row["name"] for row in first["data"] + rest["data"]] == ["v0", "v1", "v2", "v3", "v4"]
    assert [row["name"] for row in client.get(f"{URL}?state=judged").json()["data"]] == ["v0"]
