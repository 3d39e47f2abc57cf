"""The artifact store: what is opened is what was written, whoever damaged, lost, replaced or restored a copy of it."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import fsspec
import numpy as np
import pytest
from safetensors.numpy import save_file
from structlog.testing import capture_logs

from featurewatch.service.config import Settings
from featurewatch.service.features import codes
from featurewatch.service.kit import digests
from featurewatch.service.kit.artifacts import (
    UNFINISHED,
    WHOLE,
    ArtifactStore,
    DamagedArtifactError,
    Entry,
    MissingArtifactError,
    content_key,
)
from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.db import Database
from featurewatch.service.models import Family
from featurewatch.service.store import damage, logic, queries
from featurewatch.service.store.ledger import DatabaseLedger, open_store
from tests import factories

Open = Callable[..., ArtifactStore]


@pytest.fixture(params=["local", "remote"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URI of an empty store."""
    if request.param == "local":
        yield f"file://{tmp_path}/artifacts"
        return
    yield from remote_root(tmp_path)


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[str]:
    """URI of an empty object store."""
    yield from remote_root(tmp_path)


def remote_root(tmp_path: Path) -> Iterator[str]:
    uri = f"memory://{tmp_path.name}"
    yield uri
    with suppress(FileNotFoundError):
        fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


@pytest.fixture
def opened(tmp_path: Path, database: Database) -> Open:
    """Opens a store as a process that has just been started on one of several machines."""

    def store(root: str, machine: str = "a", **options: bool) -> ArtifactStore:
        digests._memory.clear()
        return ArtifactStore(root, tmp_path / machine, DatabaseLedger(database), **options)

    return store


def write(store: ArtifactStore, name: str, content: bytes = b"good" * 100, **more: bytes) -> None:
    """A folder with a file `x` and a manifest."""
    with store.create(name) as place:
        place.mkdir()
        for file, data in {"x": content, **more}.items():
            (place / file).write_bytes(data)
        (place / WHOLE).write_text("{}")


def activations(family: str = "fam_1") -> str:
    return f"{family}/activations-{content_key(of=1)}"


def in_store(store: ArtifactStore, name: str) -> bytes:
    return bytes(store.fs.cat_file(f"{store._remote(name)}/x"))


def test_a_damaged_copy_of_a_remote_artifact_is_fetched_again(remote: str, opened: Open, tmp_path: Path) -> None:
    """The store's own is good: nobody is told of damage, and nothing is removed."""
    write(opened(remote), activations())
    opened(remote, "b").path(activations())
    for content in (b"evil" * 100, b""):
        (tmp_path / "b" / activations() / "x").write_bytes(content)
        assert (opened(remote, "b").path(activations()) / "x").read_bytes() == b"good" * 100
    assert in_store(opened(remote), activations()) == b"good" * 100


def test_a_remote_artifact_that_is_damaged_in_the_store(remote: str, opened: Open, tmp_path: Path) -> None:
    store = opened(remote)
    write(store, activations())
    store.fs.pipe_file(f"{store._remote(activations())}/x", b"evil" * 100)
    other = opened(remote, "b")
    for _ in range(2):
        with pytest.raises(DamagedArtifactError, match="the contents of x have changed"):
            other.path(activations())
    assert [path for path in (tmp_path / "b").rglob("*") if path.is_file()] == []


@pytest.fixture
def kept(root: str, database: Database, settings: Settings, opened: Open) -> tuple[ArtifactStore, str]:
    """A store, and damaged activations in it that a checkpoint refers to."""
    store = opened(root)
    with database.write() as session:
        family = factories.family(session, "smol")
        source = factories.source(session, factories.checkpoint(session, family, "v1"), "resid_post.1", 4)
        source.activations = name = activations(family.id)
    write(store, name)
    store.fs.pipe_file(f"{store._remote(name)}/x", b"evil" * 100)
    store.forget(name)
    with pytest.raises(DamagedArtifactError) as caught:
        store.path(name)
    with database.read() as session:
        said = damage.set_aside(session, store, caught.value)
    assert "checkpoint v1" in said and "Retry the run" in said and "kept until then" in said
    return store, name


def test_activations_that_are_needed_are_put_aside(kept: tuple[ArtifactStore, str], database: Database) -> None:
    """They are gone for who looks, not for an operator. What is made again takes their place."""
    store, name = kept
    family = name.partition("/")[0]
    aside = store._aside(name)
    assert not store.exists(name) and store.listing(family) == {}
    assert store.fs.cat_file(f"{aside}/x") == b"evil" * 100 and store.fs.exists(f"{aside}/{WHOLE}")
    with database.read() as session:
        found = logic.inspect(session, store)
    assert found["put_aside"] == [{"artifact": name, "bytes": 402}]
    assert [row["artifact"] for row in found["missing"]] == [name]
    store.fs.mv(aside, store._remote(name), recursive=True)
    with pytest.raises(DamagedArtifactError):  # what it should hold is still known
        store.path(name)
    store.put_aside(name)
    store.clear(family)
    assert store.fs.exists(aside)
    write(store, name)
    assert store.path(name).is_dir() and not store.fs.exists(aside)
    store.put_aside("fam_1/none")  # somebody else was first


@pytest.mark.parametrize("gone", [True, False])
def test_the_vacuum_removes_what_was_put_aside_and_is_not_needed(
    kept: tuple[ArtifactStore, str], database: Database, settings: Settings, gone: bool
) -> None:
    store, name = kept
    with database.write() as session:
        family = session.query(Family).one().id
        logic.vacuum(session, store, settings, family, {}, now=utcnow())
        assert store.put_asides(family) == {name: 402}, "the checkpoint needs it"
        if gone:
            queries.release_activations(session, [row.id for row in session.query(factories.Checkpoint)])
            logic.vacuum(session, store, settings, family, {}, now=utcnow())
        else:  # it was restored
            logic.vacuum(session, store, settings, family, {name: 402}, now=utcnow())
        assert store.put_asides(family) == {}


def test_a_damaged_artifact_that_nothing_refers_to_is_removed(root: str, opened: Open, database: Database) -> None:
    store = opened(root)
    write(store, activations())
    with database.read() as session:
        damage.set_aside(session, store, DamagedArtifactError(activations(), "so"))
    assert not store.exists(activations()) and store.digest(activations()) is None
    assert not store.put_asides("fam_1")


def test_what_is_made_again_replaces_what_is_there(root: str, opened: Open, tmp_path: Path) -> None:
    """Never is what was there before taken for what was written now: neither here nor in the remote store."""
    write(opened(root), activations(), gone=b"1")
    store = opened(root)
    stale = store.cache / activations()
    (stale / "x").write_bytes(b"evil" * 100)
    (stale / WHOLE).unlink()
    write(store, activations())
    assert (store.path(activations()) / "x").read_bytes() == b"good" * 100
    assert in_store(store, activations()) == b"good" * 100
    for machine in ("a", "b"):
        place = opened(root, machine).path(activations())
        assert sorted(file.name for file in place.iterdir()) == [WHOLE, "x"]
    assert not list(tmp_path.rglob(f".*{UNFINISHED}"))


@pytest.mark.parametrize("folder", [True, False])
def test_two_writers_of_one_name_who_differ(opened: Open, tmp_path: Path, folder: bool) -> None:
    """Whoever is last: what is there is what the ledger says, and what each takes for verified was read."""
    root = f"file://{tmp_path}/artifacts"
    stores = [opened(root, "a"), opened(root, "b")]

    def make(store: ArtifactStore, name: str, data: bytes, start: threading.Barrier) -> None:
        with store.create(name) as place:
            if folder:
                place.mkdir()
            (place / "x" if folder else place).write_bytes(data)
            start.wait()

    for number in range(10):
        name, start = f"fam_1/code-{number}", threading.Barrier(2)
        threads = [
            threading.Thread(target=make, args=(store, name, data, start))
            for store, data in zip(stores, (b"one", b"two"), strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for store in (*stores, opened(root)):
            store.path(name)
    assert not list(tmp_path.rglob(f".*{UNFINISHED}"))


def test_many_threads_enter_one_name(database: Database) -> None:
    """An entry is written in the place of one that is there, also where several do that at once."""
    ledger, start = DatabaseLedger(database), threading.Barrier(4)

    def record(number: int) -> None:
        for round_ in range(15):
            start.wait()
            ledger.record(f"fam_1/code-{round_}", Entry({"": (1, str(number))}))

    with ThreadPoolExecutor(4) as pool:
        try:
            list(pool.map(record, range(4)))
        finally:
            start.abort()
    entry = ledger.find(name := "fam_1/code-14")
    assert entry is not None and entry.digest in "0123"
    ledger.adopt(name, Entry({"": (1, "other")}))
    assert ledger.find(name) == entry, "who adopts does not write over what somebody else has written meanwhile"


def test_a_worker_adopts_what_has_no_entry(root: str, opened: Open, database: Database) -> None:
    """Once, and never inside a transaction, which on SQLite would wait for itself. The API writes nothing."""
    name = f"fam_1/code-{content_key(of=1)}"
    with opened(root).create(name) as place:
        place.write_bytes(b"1" * 10)
    ledger = DatabaseLedger(database)
    ledger.erase(name)
    opened(root).path(name)
    assert ledger.find(name) is None
    worker, began = opened(root, adopts=True), time.monotonic()
    with database.write():
        worker.path(name)
    assert time.monotonic() - began < 20 and ledger.find(name) is None
    with capture_logs() as lines:
        for _ in range(3):
            worker.path(name)
    assert [(line["log_level"], line["artifact"]) for line in lines] == [("warning", name)]
    assert ledger.find(name) == Entry({"": (10, digests.sha256(worker.path(name)))})
    (worker.cache / name).write_bytes(b"2" * 10)
    if worker.is_local:
        with pytest.raises(DamagedArtifactError):
            worker.path(name)


def test_a_deep_check_reads_the_remote_store(remote: str, opened: Open, settings: Settings, database: Database) -> None:
    """Not this machine's copies, which may be good or bad."""
    names = [f"fam_1/code-{content_key(of=n)}" for n in range(4)]
    store = opened(remote)
    for name in names:
        with store.create(name) as place:
            place.write_bytes(b"1" * 10)
    store.fs.pipe_file(store._remote(names[0]), b"2" * 10)
    (store.cache / names[1]).write_bytes(b"3" * 10)
    DatabaseLedger(database).erase(names[2])
    empty = opened(remote, "empty")
    found = damage.verify_all(empty, [*names, "fam_1/missing"])
    assert [row["artifact"] for row in found.pop("damaged")] == [names[0]]
    assert found == {"verified": 2, "adopted": 1, "verified_bytes": 30}
    assert not [path for path in empty.cache.rglob("*") if path.is_file()]
    assert store.digest(names[2]) is not None


def test_the_command_reads_the_remote_store(
    remote: str, settings: Settings, database: Database, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurewatch.service.cli.host import local_database  # noqa: PLC0415

    settings = settings.model_copy(update={"artifacts": remote})
    for key, value in settings.environment().items():
        monkeypatch.setenv(key, value)
    with database.write() as session:
        family = factories.family(session, "smol")
        source = factories.source(session, factories.checkpoint(session, family, "v1"), "resid_post.1", 4)
        source.dictionary = name = f"{family.id}/dictionary-{content_key(of=1)}"
    store = open_store(settings, database)
    with store.create(name) as place:
        place.write_bytes(b"1" * 10)
    assert local_database.check(deep=True)["damaged"] == []
    store.fs.pipe_file(store._remote(name), b"2" * 10)
    assert [row["artifact"] for row in local_database.check(deep=True)["damaged"]] == [name]
    assert store.path(name).read_bytes() == b"1" * 10, "this machine's copy is as it was"
    assert not list(settings.cache_dir.glob("check-*"))


def test_what_is_kept_in_memory_is_of_the_file_that_is_there(tmp_path: Path) -> None:
    """A damaged artifact is restored by a rename, as rsync and mv do, with the same size and time."""
    store = ArtifactStore(f"file://{tmp_path}", tmp_path)
    file, new = tmp_path / "code", tmp_path / "new"

    def make(place: Path, numbers: list[int]) -> None:
        save_file({"feature_numbers": np.array(numbers)}, place)

    make(file, [1, 2, 3])
    assert codes.tensors(store, "code")["feature_numbers"].tolist() == [1, 2, 3]
    assert codes._columns(store, "code").columns_of([2, 7]) == {2: 1}
    make(new, [5, 6, 7])
    new.rename(file)
    assert codes.tensors(store, "code")["feature_numbers"].tolist() == [5, 6, 7]
    assert codes._columns(store, "code").columns_of([2, 7]) == {7: 2}
    texts = tmp_path / "documents"
    texts.write_text('{"id": 1, "text": "first"}\n{"id": 2, "text": "second"}\n')
    assert codes.document_text(texts, 2) == "second"
    new.write_text('{"id": 2, "text": "SECOND"}\n{"id": 1, "text": "first"}\n')
    new.rename(texts)
    assert codes.document_text(texts, 2) == "SECOND"


def test_nothing_stays_of_a_fetch_that_another_process_won(
    remote: str, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(opened(remote), activations())
    slow, quick = opened(remote, "b"), opened(remote, "b")
    get = slow.fs.get

    def get_late(*arguments: object, **options: object) -> None:
        get(*arguments, **options)
        with monkeypatch.context() as patch:
            patch.setattr(slow.fs, "get", get)
            quick.path(activations())

    monkeypatch.setattr(slow.fs, "get", get_late)
    assert (slow.path(activations()) / "x").read_bytes() == b"good" * 100
    assert [path.name for path in (tmp_path / "b" / "fam_1").iterdir()] == [activations().partition("/")[2]]
    with pytest.raises(MissingArtifactError):
        slow.path("fam_1/none")
