"""What was judged is what was read: content that changes under a name, and artifacts that do not hold what was written.

Each fault ends in an error that names what is wrong, or changes nothing: no verdict is made of other bytes.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load, save_file

from featurewatch.service.models import Checkpoint, Code, Family, Source
from featurewatch.workers.activations.harvest import shards as shards_module
from featurewatch.workers.activations.models import loading as models_module
from tests.e2e.inprocess import HOOK, TEXTS, Installation, failed_by
from tests.unit.activations.tiny import in_place, save_checkpoint, weights_of, zero


def flip(data: bytearray) -> None:
    """One bit, in the last fifth."""
    data[len(data) * 4 // 5] ^= 1


CHECKPOINT_FILES = ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("file", CHECKPOINT_FILES)
def test_a_file_is_changed_between_registration_and_run(installation: Installation, file: str) -> None:
    """Size and time stay. Put back, the run can be retried; what was not registered is never judged."""
    name, folder = installation.fresh_model()
    run_id = installation.register(name, folder.as_uri())
    before = (folder / file).read_bytes()
    in_place(folder / file, flip)
    failed_by(installation.work(run_id), "content-changed", file)
    assert not installation.verdicts(name)
    (folder / file).write_bytes(before)
    assert installation.retry(run_id)["state"] == "succeeded"


@pytest.mark.parametrize("file", CHECKPOINT_FILES)
def test_a_file_is_changed_while_it_is_read(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """After it was verified, during the harvest; and then changed back, as if nothing had happened."""
    name, folder = installation.fresh_model(seed=20 + CHECKPOINT_FILES.index(file))
    before, batches = (folder / file).read_bytes(), 0
    read_batch = shards_module.read_batch

    def read(*arguments: Any, **named: Any) -> int:
        nonlocal batches
        batches += 1
        if batches == 1:
            in_place(folder / file, flip)
        return read_batch(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "read_batch", read)
        run = installation.judge(name, folder.as_uri())
    failed_by(run, "content-changed", file)
    assert not list((installation.settings.data_dir / "partial").glob("*activations*"))
    (folder / file).write_bytes(before)
    assert installation.retry(run["id"])["state"] == "succeeded"


def activations(installation: Installation, name: str, family: str | None = None) -> dict[str, bytes]:
    """File -> bytes of a checkpoint's activations, without what names it."""
    family_id = installation.row(Family, name=family or installation.family).id
    checkpoint = installation.row(Checkpoint, name=name, family_id=family_id)
    folder = installation.artifacts.cache / installation.row(Source, checkpoint_id=checkpoint.id).activations
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix == ".safetensors"}


@pytest.mark.parametrize("swap", ["folder", "link"])
def test_a_folder_is_swapped_while_it_is_read(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, swap: str
) -> None:
    """And swapped back: what was hashed is what is open, whatever has its name. Nothing of the other model is read."""
    name, folder = installation.fresh_model(seed=30 + len(swap))
    other = save_checkpoint(installation.folder / f"{name}-other", seed=40)
    aside, load = installation.folder / f"{name}-aside", models_module._load_body
    if swap == "link":
        (folder / "model.safetensors").rename(aside)
        (folder / "model.safetensors").symlink_to(aside)

    def exchange(here: Path, there: Path) -> None:
        folder.rename(there)
        here.rename(folder)

    def flip(target: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").symlink_to(target)

    def load_swapped(*arguments: Any) -> Any:
        exchange(other, aside) if swap == "folder" else flip(other / "model.safetensors")
        try:
            return load(*arguments)
        finally:
            exchange(aside, other) if swap == "folder" else flip(aside)

    with monkeypatch.context() as patch:
        patch.setattr(models_module, "_load_body", load_swapped)
        assert installation.judge(name, folder.as_uri())["state"] == "succeeded"
    family = installation.make_family(f"unswapped-{swap}")
    assert installation.judge("v1", folder.as_uri(), family=family)["state"] == "succeeded"
    assert activations(installation, name) == activations(installation, "v1", family)


def test_an_index_too_long_for_a_request_names_its_files(installation: Installation) -> None:
    name, folder = installation.fresh_model(seed=50)
    tensors = weights_of(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    halves = {f"part{n}.safetensors": dict(list(tensors.items())[n::2]) for n in (0, 1)}
    for file, part in halves.items():
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {tensor: file for file, part in halves.items() for tensor in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index) + " " * 1_100_000)
    run_id = installation.register(name, folder.as_uri())
    whole = (folder / "part1.safetensors").read_bytes()
    in_place(folder / "part1.safetensors", zero)
    failed_by(installation.work(run_id), "content-changed", "part1.safetensors")
    (folder / "part1.safetensors").write_bytes(whole)
    assert installation.retry(run_id)["state"] == "succeeded"


def test_a_time_in_the_future_does_not_keep_a_comparison_from_its_end(installation: Installation) -> None:
    name, folder = installation.fresh_model(seed=51)
    tensors = weights_of(folder / "model.safetensors") | {"unused": torch.randn(6_000_000)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    ahead = time.time() + 86400
    os.utime(folder / "model.safetensors", (ahead, ahead))
    assert installation.judge(name, folder.as_uri())["state"] == "succeeded"
    os.utime(folder / "model.safetensors", (ahead + 1, ahead + 1))
    for _ in range(100):
        answer = installation.post(name, folder.as_uri())
        if answer.status_code != 503:
            break
        time.sleep(0.1)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("rest", ["#2", "?part=2"])
def test_a_uri_names_the_folder_that_it_says(installation: Installation, rest: str) -> None:
    """`#` and `?` end the path."""
    answer = installation.post("elsewhere", installation.model.as_uri() + rest)
    assert (answer.status_code, answer.json()["code"]) == (422, "path-refused")


def test_a_judged_checkpoint_of_before_is_not_read_again_unseen(installation: Installation) -> None:
    """Its digests were not kept: activations that are lost cannot be made of whatever lies there now."""
    family = installation.make_family("before")
    assert installation.judge("v1", installation.model.as_uri(), family=family)["state"] == "succeeded"
    family_id = installation.row(Family, name=family).id
    with installation.database.write() as session:
        row = session.query(Checkpoint).filter_by(family_id=family_id).one()
        row.contents = row.content_digest = row.resolved_uri = None
        kept = installation.artifacts.cache / session.query(Source).filter_by(checkpoint_id=row.id).one().activations
    lost = kept.rename(installation.folder / "lost")
    _, other = installation.fresh_model(seed=53)
    run = installation.judge("v2", other.as_uri(), family=family)
    failed_by(run, "content-unknown", "v1", "another name")
    lost.rename(kept)


def test_other_weights_in_the_same_place(installation: Installation) -> None:
    """A name keeps its content: the same files again are the same registration, others are refused."""
    name, folder = installation.fresh_model(seed=3)
    run = installation.judge(name, folder.as_uri())
    digest = installation.checkpoint(name)["content_digest"]
    assert run["state"] == "succeeded" and len(digest) == 64
    assert installation.post(name, folder.as_uri()).status_code == 200
    os.utime(folder / "model.safetensors")
    assert installation.post(name, folder.as_uri()).status_code == 200, "the time of a file says nothing"
    in_place(folder / "model.safetensors", zero)
    refused = installation.post(name, folder.as_uri())
    assert (refused.status_code, refused.json()["code"]) == (409, "name-used")
    assert installation.judge(f"{name}b", folder.as_uri())["state"] == "succeeded"
    assert installation.checkpoint(f"{name}b")["content_digest"] != digest


def test_a_large_model_whose_tensors_are_zeroed_in_place(installation: Installation) -> None:
    """79 MB: more than a registration hashes while it waits."""
    name, folder = installation.fresh_model(seed=4)
    tensors = weights_of(folder / "model.safetensors")
    extra = {f"unused.{n}": torch.randn(1024, 1024) for n in range(19)}
    save_file(tensors | extra, folder / "model.safetensors", metadata={"format": "pt"})
    run_id = installation.register(name, folder.as_uri())

    def some(data: bytearray) -> None:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(bytes(data[8 : 8 + length]))
        for tensor in list(tensors)[:18]:
            begin, end = (8 + length + offset for offset in header[tensor]["data_offsets"])
            data[begin:end] = bytes(end - begin)

    in_place(folder / "model.safetensors", some)
    failed_by(installation.work(run_id), "content-changed", "model.safetensors")
    assert installation.judge(name, folder.as_uri())["state"] == "succeeded", "a failed name is free"
    in_place(folder / "model.safetensors", flip)
    for _ in range(100):  # the comparison may take longer than a request
        answer = installation.post(name, folder.as_uri())
        if answer.status_code != 503:
            break
        assert answer.json()["code"] == "content-pending" and int(answer.headers["Retry-After"]) >= 1
    assert (answer.status_code, answer.json()["code"]) == (409, "name-used")


def test_a_hub_reference_that_moves(installation: Installation) -> None:
    """In the hub's local cache, without a network: what is judged is a commit."""
    hub = installation.settings.cache_dir / "hub" / "models--org--moving"
    commits = ["a" * 40, "b" * 40]
    for seed, commit in enumerate(commits, 5):
        save_checkpoint(hub / "snapshots" / commit, seed=seed)
    (hub / "refs").mkdir()
    main = hub / "refs" / "main"
    digests = []
    for number, commit in enumerate(commits):
        main.write_text(commit)
        name = f"hub{number}"
        assert installation.judge(name, "hf://org/moving@main")["state"] == "succeeded"
        shown = installation.checkpoint(name)
        assert shown["resolved_uri"] == f"hf://org/moving@{commit}"
        digests.append(shown["content_digest"])
        assert installation.post(name, "hf://org/moving@main").status_code == 200
    assert len(set(digests)) == 2
    assert installation.post("hub0", "hf://org/moving@main").status_code == 409, "it is another commit now"
    assert installation.post("hub0", f"hf://org/moving@{commits[0]}").status_code == 200
    run_id = installation.register("hub2", "hf://org/moving@main")
    main.write_text(commits[0])
    assert installation.work(run_id)["state"] == "succeeded"
    assert installation.checkpoint("hub2")["content_digest"] == digests[1], "what it was when it was registered"


def test_a_download_that_is_damaged(installation: Installation) -> None:
    """The hub's cache names a large file by its SHA-256."""
    hub, commit = installation.settings.cache_dir / "hub" / "models--org--damaged", "c" * 40
    snapshot = save_checkpoint(hub / "snapshots" / commit, seed=7)
    (hub / "blobs").mkdir()
    blob = hub / "blobs" / ("0" * 64)
    shutil.move(snapshot / "model.safetensors", blob)
    (snapshot / "model.safetensors").symlink_to(blob)
    run = installation.judge("damaged-download", f"hf://org/damaged@{commit}")
    failed_by(run, "download-damaged", "model.safetensors", "Retry")


def test_an_object_store_that_changes(installation: Installation) -> None:
    name, folder = installation.fresh_model(seed=8)
    uri = f"memory://{installation.folder.name}/{name}"
    fs, base = fsspec.core.url_to_fs(uri)

    def upload(source: Path) -> None:
        for file in source.iterdir():
            fs.put_file(str(file), f"{base}/{file.name}")

    upload(folder)
    assert installation.judge(name, uri)["state"] == "succeeded"
    resolved = installation.checkpoint(name)["resolved_uri"]
    assert resolved.startswith(f"{uri}#")
    assert installation.post(name, uri).status_code == 200
    run_id = installation.register(f"{name}b", uri)
    upload(save_checkpoint(installation.folder / f"{name}-other", seed=9))
    failed_by(installation.work(run_id), "content-changed", uri)
    assert installation.post(name, uri).status_code == 409
    assert installation.judge(f"{name}c", uri)["state"] == "succeeded"
    assert installation.checkpoint(f"{name}c")["resolved_uri"] != resolved


@pytest.mark.parametrize("uri", ["s3://models/x", "memory-of-others://x", "gs://b/c", "memory://../x"])
def test_a_store_that_is_not_allowed(installation: Installation, uri: str) -> None:
    answer = installation.post("elsewhere", uri)
    assert answer.status_code == 422
    assert answer.json()["code"] in ("store-refused", "uri-unsupported")


def test_the_corpus_is_read_once(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overwritten at half of the first harvest: every checkpoint is read on what was copied."""
    family, batches = installation.make_family("copied"), 0
    before, read_batch = installation.corpus.read_text(), shards_module.read_batch

    def read(*arguments: Any, **named: Any) -> int:
        nonlocal batches
        batches += 1
        if batches == 1:
            installation.corpus.write_text('{"text": "Something else, and much less of it."}\n')
        return read_batch(*arguments, **named)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(shards_module, "read_batch", read)
            assert installation.judge("v1", installation.model.as_uri(), family=family)["state"] == "succeeded"
        assert installation.judge("v2", installation.model.as_uri(), family=family)["state"] == "succeeded"
    finally:
        installation.corpus.write_text(before)
    row = installation.row(Family, name=family)
    assert row.documents["count"] == len(TEXTS) and row.positions["documents"] == row.documents["artifact"]
    documents = installation.artifacts.path(row.documents["artifact"]).read_text().splitlines()
    assert [json.loads(line)["text"] for line in documents] == TEXTS


def test_a_model_folder_is_read_through_its_registered_files_alone(installation: Installation) -> None:
    """transformers would follow an adapter_config.json to whatever base model it names."""
    name, folder = installation.fresh_model(seed=10)
    elsewhere = save_checkpoint(installation.folder / "not-registered", seed=11)
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(elsewhere), "task_type": "CAUSAL_LM"})
    )
    answer = installation.post(name, folder.as_uri())
    if answer.status_code == 202:
        assert installation.work(answer.json()["run"]["id"])["state"] == "succeeded"
        (folder / "adapter_config.json").unlink()
        copy = shutil.copytree(folder, installation.folder / f"{name}-plain")
        assert installation.judge(f"{name}b", copy.as_uri())["state"] == "succeeded"
        digests = {installation.checkpoint(n)["content_digest"] for n in (name, f"{name}b")}
        assert len(digests) == 1
    else:
        assert answer.status_code == 422


# Artifacts: each kind that a later run or the API opens, and what can become of it.


def rotate(file: Path) -> None:
    """Documents, or the last values, of a safetensors file in another order: nothing but the values tells."""
    tensors = load(file.read_bytes())
    name = "document" if "document" in tensors else max(tensors, key=lambda key: tensors[key].numel())
    tensors[name] = torch.roll(tensors[name].flatten(), 7).reshape(tensors[name].shape)
    save_file(tensors, file)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 3 // 5])


DAMAGE: dict[str, Callable[[Path], None]] = {
    "bit flip": lambda file: in_place(file, flip),
    "zeroed": lambda file: in_place(file, zero),
    "truncated": cut,
    "emptied": lambda file: (file.write_bytes(b"") and None) or None,
    "rotated": rotate,
}


def places(installation: Installation) -> dict[str, Path]:
    """Kind -> a file of that kind that extending v1 needs."""
    checkpoint = installation.row(Checkpoint, name="v1", family_id=installation.row(Family, name="smol").id)
    family, source = installation.row(Family, name="smol"), installation.row(Source, checkpoint_id=checkpoint.id)
    code = installation.row(Code, checkpoint_id=checkpoint.id)
    store = installation.artifacts.cache
    folder = store / source.activations
    return {
        "activations": next(folder.glob(f"{HOOK}-*.safetensors")),
        "activations' documents": folder / "documents.safetensors",
        "activations' manifest": folder / "manifest.json",
        "dictionary": store / source.dictionary,
        "code": store / code.artifact,
        "rows": store / str(code.rows),
        "own code": store / str(code.own_code),
        "positions": store / family.positions["artifact"],
        "documents": store / family.documents["artifact"],
    }


KINDS = ("activations", "activations' documents", "activations' manifest", "dictionary", "code", "rows", "own code",
         "positions", "documents")  # fmt: skip
FAULTS = [
    (kind, damage)
    for kind in KINDS
    for damage in DAMAGE
    if not (damage == "rotated" and kind in ("activations' manifest", "documents"))
]


@pytest.fixture(scope="module")
def child(installation: Installation) -> tuple[str, dict[str, Any]]:
    """A run that extends v1, which has not been done; and what it says where nothing is damaged."""
    folder = save_checkpoint(installation.folder / "child", seed=1)
    run = installation.judge("whole", folder.as_uri(), parent="v1")
    assert run["state"] == "succeeded", run
    counts = installation.checkpoint("whole")["quality"]["statuses"]
    return folder.as_uri(), counts


def with_unused_tensor(installation: Installation, name: str) -> Path:
    """The child's model as other content, which says the same."""
    folder = shutil.copytree(installation.folder / "child", installation.folder / name)
    tensors = weights_of(folder / "model.safetensors") | {"unused": torch.ones(next(installation.numbers))}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(("kind", "damage"), FAULTS, ids=lambda value: str(value).replace(" ", "-"))
def test_a_damaged_artifact_is_never_used(
    installation: Installation, child: tuple[str, dict[str, Any]], kind: str, damage: str
) -> None:
    """The run fails, names it and says what to do. Made again or, of a code, restored, it is as if never hurt."""
    uri, counts = child
    file = places(installation)[kind]
    whole, name = file.read_bytes(), f"d{next(installation.numbers)}"
    if kind in ("positions", "documents"):  # what was read before is not read again
        uri = with_unused_tensor(installation, name).as_uri()
    DAMAGE[damage](file)
    run = installation.judge(name, uri, parent="v1")
    artifact = file.relative_to(installation.artifacts.cache).parts[1]
    failed_by(run, "artifact-damaged", artifact, "backup" if kind == "code" else "Retry the run")
    assert not installation.verdicts(name)
    if kind == "code":
        file.write_bytes(whole)
    again = installation.retry(run["id"])
    assert again["state"] == "succeeded", again["error"]
    assert installation.checkpoint(name)["quality"]["statuses"] == counts
    assert file.read_bytes() == whole


def test_a_stage_that_was_damaged_is_done_again(installation: Installation, child: tuple[str, dict[str, Any]]) -> None:
    """What only this run has made: its first attempt dies after it, the second one finds it damaged."""
    from featurewatch.workers.pipelines.stages import record  # noqa: PLC0415

    _, counts = child
    name = f"d{next(installation.numbers)}"
    folder = with_unused_tensor(installation, name)
    run_id = installation.register(name, folder.as_uri(), parent="v1")
    before = {path for path in (installation.artifacts.cache).rglob("*") if path.is_file()}
    write, record.write = record.write, lambda *_: (_ for _ in ()).throw(RuntimeError("killed"))
    try:
        assert installation.work(run_id)["state"] == "failed"
    finally:
        record.write = write
    made = [p for p in installation.artifacts.cache.rglob("*") if p.is_file() and p not in before]
    damaged = {p.name.partition("-")[0]: p for p in made if p.name.startswith(("measures", "dictionary", "code"))}
    assert set(damaged) == {"measures", "dictionary", "code"}
    for file in damaged.values():
        in_place(file, zero)
    for _ in ("code", "dictionary"):  # measures are made of the dictionary's run, or are found next
        failed_by(installation.retry(run_id), "artifact-damaged", "Retry the run to rebuild it")
    assert installation.retry(run_id)["state"] == "succeeded"
    assert installation.checkpoint(name)["quality"]["statuses"] == counts


def test_measures_of_another_code_are_not_used(
    installation: Installation, child: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A code that is made again may differ, as on a GPU. Measures of the damaged one are not mixed with it."""
    from featurewatch.workers.pipelines.shared import files  # noqa: PLC0415
    from featurewatch.workers.pipelines.stages import record  # noqa: PLC0415

    store = installation.artifacts.cache / installation.row(Family, name="smol").id
    before, name = set(store.iterdir()), f"d{next(installation.numbers)}"
    run_id = installation.register(name, with_unused_tensor(installation, name).as_uri(), parent="v1")
    with monkeypatch.context() as patch:
        patch.setattr(record, "write", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        assert installation.work(run_id)["state"] == "failed"
    (code,) = (path for path in set(store.iterdir()) - before if path.name.startswith("code-"))
    in_place(code, zero)
    failed_by(installation.retry(run_id), "artifact-damaged", "Retry the run to rebuild it")
    save_code = files.save_code

    def save_other(place: Path, *arguments: Any) -> None:
        save_code(place, *arguments)
        save_file(load(place.read_bytes()), place, metadata={"made": "again"})

    with monkeypatch.context() as patch:
        patch.setattr(files, "save_code", save_other)
        assert installation.retry(run_id)["state"] == "succeeded"
    made = [path.name.partition("-")[0] for path in set(store.iterdir()) - before]
    assert (made.count("code"), made.count("measures"), made.count("dictionary")) == (1, 2, 2)


def test_what_the_api_shows_is_verified(installation: Installation) -> None:
    url = "/v1/families/smol/features/F1/examples"
    shown = installation.client.get(url).json()["checkpoint"]
    checkpoint = installation.row(Checkpoint, name=shown, family_id=installation.row(Family, name="smol").id)
    file = installation.artifacts.cache / installation.row(Code, checkpoint_id=checkpoint.id).examples
    whole = file.read_bytes()
    in_place(file, zero)
    answer = installation.client.get(url)
    assert (answer.status_code, answer.json().get("code")) == (500, "artifact-damaged"), answer.text
    assert "db check --deep" in answer.json()["detail"]
    file.write_bytes(whole)
    assert installation.client.get(url).status_code == 200


def test_a_deep_check_finds_what_is_damaged(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And names what depends on it."""
    from featurewatch.service.cli.host import local_database  # noqa: PLC0415

    for name, value in installation.settings.environment().items():
        monkeypatch.setenv(name, value)
    found = local_database.check(deep=True)
    assert (found["damaged"], found["missing"]) == ([], [])
    assert found["verified"] > 10 and found["verified_bytes"] > 10_000
    files = places(installation)
    whole = {kind: files[kind].read_bytes() for kind in ("code", "documents")}
    for kind in whole:
        in_place(files[kind], flip)
    assert local_database.check(deep=False)["damaged"] == [], "sizes are as they were"
    damaged = {row["artifact"].split("/")[1]: row for row in local_database.check(deep=True)["damaged"]}
    assert set(damaged) == {files[kind].name for kind in whole}
    assert "checkpoint v1 (code.artifact)" in damaged[files["code"].name]["depends"]
    assert damaged[files["documents"].name]["depends"] == ["family smol"]
    assert all("backup" in row["rebuild"] for row in damaged.values())
    for kind, data in whole.items():
        files[kind].write_bytes(data)
    cut(files["code"])
    assert len(local_database.check(deep=False)["damaged"]) == 1
    files["code"].write_bytes(whole["code"])
