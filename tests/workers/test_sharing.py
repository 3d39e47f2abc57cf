"""Harvests that several workers share: the same bytes whoever does what, and nobody waits for who does not come."""

import json
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

import fsspec
import pytest
import redis
import torch
from kombu.exceptions import OperationalError
from sqlalchemy import select, update

from featurewatch.service.config import Settings
from featurewatch.service.kit import clock, digests
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.db import Database
from featurewatch.service.models import Run, Shard
from featurewatch.service.runs import logic as runs
from featurewatch.service.shards import logic, queries
from featurewatch.workers import runner
from featurewatch.workers.activations.harvest import shards as shard_files
from featurewatch.workers.activations.tensorfiles import write_tensors
from featurewatch.workers.app import call_helper, make_app
from featurewatch.workers.errors import WorkerStoppingError
from featurewatch.workers.pipelines.shared import shared_harvest
from featurewatch.workers.pipelines.shared.shared_harvest import group_artifact
from featurewatch.workers.sweeps import Sweeper
from tests import factories
from tests.services import free_port
from tests.unit.activations.tiny import TEXTS, in_place, save_checkpoint, zero
from tests.workers.conftest import Installation, wait_for
from tests.workers.harvests import PIPELINES

POSITIONS = 100
"""Of a shard."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and, beside it, a corpus of some 24 groups. Read only."""
    folder = tmp_path_factory.mktemp("models")
    save_checkpoint(folder / "llama")
    texts = [f"{number}: {text}" for number in range(16) for text in TEXTS]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder / "llama"


@pytest.fixture
def settings(settings: Settings, model: Path, broker_url: str) -> Settings:
    return settings.model_copy(
        update={"broker_url": broker_url, "shard_positions": POSITIONS, "roots": str(model.parent), "threads": 1}
    )


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_harvest, "_declined", {})
    monkeypatch.setattr(shard_files, "read_batch", shard_files.read_batch)  # the pipeline puts a slow one there


def queue(installation: Installation, model: Path, name: str = "smol", uri: str | None = None) -> str:
    """A run that harvests the model, of a family of its own."""
    with installation.database.write() as session:
        family = factories.family(session, name, ("resid_post.1", "mlp_out.0"))
        family.corpus = {"uri": f"file://{model.parent}/corpus.jsonl", "max_documents": 500, "context_length": 64}
        one = factories.checkpoint(session, family, "v1", state="registered", uri=uri or f"file://{model}")
        return runs.create(session, family_id=family.id, checkpoint_id=one.id, kind="harvest", params={}).id


def harvested(installation: Installation, run_id: str) -> dict[str, bytes]:
    """File -> bytes of the activations that a run has made. Nothing else of the harvest is left."""
    run = installation.run(run_id)
    assert run.state == "succeeded", run.error
    folder = installation.artifacts.path(run.result["activations"])
    assert not list(folder.parent.glob("shards-*"))
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def rows(installation: Installation, run_id: str) -> list[Shard]:
    with installation.database.read() as session:
        return list(session.scalars(select(Shard).where(Shard.run_id == run_id).order_by(Shard.number)))


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> dict[str, bytes]:
    """What an embedded installation makes of the model; it has no rows of shards."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "data").mkdir()
    (folder / "data" / "featurewatch.db").write_bytes(sqlite_template.read_bytes())
    settings = Settings(data_dir=folder / "data", roots=str(model.parent), shard_positions=POSITIONS, threads=1)
    installation = Installation(settings, Database(settings.resolved_database_url), folder)
    run_id = queue(installation, model)
    assert installation.run_next(pipelines=PIPELINES) == run_id
    assert rows(installation, run_id) == []
    made = harvested(installation, run_id)
    assert len(made) > 40, "two hook points, many groups"
    installation.database.close()
    return made


class Coordinator(threading.Thread):
    """The run's own worker, in a thread of this process."""

    def __init__(self, installation: Installation) -> None:
        super().__init__()
        self.installation = installation

    def run(self) -> None:
        self.installation.run_next(pipelines=PIPELINES, worker="own")

    def __enter__(self) -> "Coordinator":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.join()


def offered(installation: Installation, run_id: str) -> list[Shard]:
    """The run's rows, as soon as there are any."""
    return wait_for(lambda: rows(installation, run_id), 60)


def with_long_leases(installation: Installation) -> None:
    """Leases that outlast any standstill of the machine. After one, a group or the run itself is rightly taken over."""
    installation.settings = installation.settings.model_copy(update={"lease_seconds": 600.0})


def test_two_workers_do_one_harvest(installation: Installation, model: Path, alone: dict[str, bytes]) -> None:
    with_long_leases(installation)
    run_id = queue(installation, model)
    with Coordinator(installation):
        offered(installation, run_id)
        helped = help_with(installation)
    done = rows(installation, run_id)
    assert helped > 3
    assert [row.worker for row in done].count("helper") == helped
    assert {row.worker for row in done} == {"own", "helper"}
    assert all(row.done_at and row.read == row.size and row.attempt == 1 for row in done)
    assert harvested(installation, run_id) == alone
    told = installation.run(run_id).detail
    assert told["total"] == sum(row.size for row in done) >= told["positions"]
    assert told["positions"] > sum(row.size for row in done if row.worker == "own"), "progress is that of all"


def help_with(installation: Installation, **options: object) -> int:
    named = {"settings": installation.settings, "database": installation.database, "artifacts": installation.artifacts}
    return runner.help_others(**(named | {"worker": "helper"} | options))


@pytest.fixture
def stored(model: Path, tmp_path: Path) -> str:
    """The model in an object store: each machine fetches a copy of its own, with other times."""
    uri = f"memory://models/{tmp_path.name}"
    fs, base = fsspec.core.url_to_fs(uri)
    for file in model.iterdir():
        fs.put_file(str(file), f"{base}/{file.name}")
    return uri


def shards_alone(files: dict[str, bytes]) -> dict[str, bytes]:
    """All but the manifest, which names the model by its URI."""
    return {name: data for name, data in files.items() if name != "manifest.json"}


def test_workers_on_two_machines_share_an_object_store(
    installation: Installation, model: Path, stored: str, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """Each has a data folder of its own, and a copy of the model with other times."""
    installation.artifacts = ArtifactStore("memory://sharing", tmp_path / "own-cache")
    here = installation.settings.model_copy(update={"data_dir": tmp_path / "other"})
    run_id = queue(installation, model, uri=stored)
    with Coordinator(installation):
        offered(installation, run_id)
        helped = help_with(
            installation, settings=here, artifacts=ArtifactStore("memory://sharing", tmp_path / "other-cache")
        )
    assert helped > 3
    assert shards_alone(harvested(installation, run_id)) == shards_alone(alone)
    assert not list(tmp_path.glob("*-cache/*/shards-*/*/*")), "no copy stays on either machine"


def test_what_a_dead_helper_held_is_done_by_the_runs_own_worker(
    installation: Installation, model: Path, alone: dict[str, bytes]
) -> None:
    """Also what it said was done, and is not there whole."""
    run_id = queue(installation, model)
    with Coordinator(installation):
        offered(installation, run_id)
        with installation.database.write() as session:
            dead = logic.claim(session, run_id, worker="dead", lease_seconds=0.5)
            liar = logic.claim(session, run_id, worker="liar", lease_seconds=60)
            assert logic.finish(session, liar)
    done = {row.number: row for row in rows(installation, run_id)}
    assert (done[dead.number].worker, done[dead.number].attempt) == ("own", 2)
    assert (done[liar.number].worker, done[liar.number].attempt) == ("own", 2)
    assert harvested(installation, run_id) == alone


@pytest.mark.parametrize("how", ["cancelled", "lost"])
def test_helpers_stop_when_the_run_does(installation: Installation, model: Path, how: str) -> None:
    run_id = queue(installation, model)
    with Coordinator(installation):
        offered(installation, run_id)
        helper = threading.Thread(target=help_with, args=(installation,))
        helper.start()
        wait_for(lambda: any(row.worker == "helper" for row in rows(installation, run_id)))
        with installation.database.write() as session:
            if how == "cancelled":
                runs.request_cancel(session, session.get_one(Run, run_id))
            else:
                session.execute(update(Run).where(Run.id == run_id).values(attempt=Run.attempt + 1))
        helper.join(10)
        assert not helper.is_alive()
    left = rows(installation, run_id)
    assert any(row.done_at is None for row in left)
    with installation.database.write() as session:
        assert not queries.any_free(session, clock.utcnow() + timedelta(days=1)), "nobody else comes for the rest"
        assert logic.claim(session, run_id, worker="late", lease_seconds=60) is None


def test_a_next_attempt_takes_over_what_helpers_have_done(
    installation: Installation, model: Path, alone: dict[str, bytes]
) -> None:
    run_id = queue(installation, model)
    stop = threading.Event()
    own = threading.Thread(target=installation.run_next, kwargs={"pipelines": PIPELINES, "stop": stop.is_set})
    own.start()
    offered(installation, run_id)
    helper = threading.Thread(target=help_with, args=(installation,))
    helper.start()
    wait_for(lambda: any(row.worker == "helper" and row.done_at for row in rows(installation, run_id)))
    stop.set()
    own.join()
    helper.join()
    before = rows(installation, run_id)
    assert installation.run(run_id).state == "queued"
    assert installation.run_next(pipelines=PIPELINES) == run_id
    after = rows(installation, run_id)
    done = {row.number for row in before if row.done_at}
    assert len(after) == len(before) - len(done)
    assert not {row.id for row in after} & {row.id for row in before}, "a helper of the first attempt matches nothing"
    assert not {row.number for row in after} & done
    assert harvested(installation, run_id) == alone


def test_an_attempt_that_was_killed_while_it_took_shards_over(
    installation: Installation, model: Path, alone: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had moved one file of a group. The next attempt reads that group again."""
    run_id, taken, take = queue(installation, model), list[Path](), shared_harvest._take

    def take_one(file: Path, place: Path) -> None:
        if taken:
            raise WorkerStoppingError("killed")
        taken.append(file)
        take(file, place)

    with monkeypatch.context() as patch:
        patch.setattr(shared_harvest, "_take", take_one)
        with Coordinator(installation):
            offered(installation, run_id)
            help_with(installation)
    assert installation.run(run_id).state == "queued"
    assert installation.run_next(pipelines=PIPELINES) == run_id
    assert harvested(installation, run_id) == alone
    assert int(taken[0].parent.name) in {row.number for row in rows(installation, run_id)}


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """What was logged: on a stream, or, where logging was configured in this process before, as records."""
    caplog.set_level(logging.DEBUG)  # another test's service may have been quieter

    def text() -> str:
        streams = capsys.readouterr()
        return caplog.text or streams.out + streams.err

    return text


def test_a_helper_that_cannot_leaves_it_to_others(
    installation: Installation, model: Path, alone: dict[str, bytes], tmp_path: Path, said: Callable[[], str]
) -> None:
    run_id = queue(installation, model)
    elsewhere = installation.settings.model_copy(update={"roots": str(tmp_path / "nothing")})
    with Coordinator(installation):
        offered(installation, run_id)
        assert help_with(installation, settings=elsewhere) == 0
        assert help_with(installation, settings=elsewhere) == 0, "and does not try again at once"
    assert {row.worker for row in rows(installation, run_id)} == {"own"}
    assert harvested(installation, run_id) == alone
    assert said().count("cannot help") == 1


def test_a_helper_with_other_weights_is_found_out(
    installation: Installation,
    model: Path,
    alone: dict[str, bytes],
    tmp_path: Path,
    said: Callable[[], str],
) -> None:
    """Its copy of the same model holds other weights."""
    here = Settings.model_validate(installation.settings.model_dump() | {"data_dir": tmp_path / "other"})
    snapshot = "c" * 40
    hub = Path("hub", "models--org--shared", "snapshots", snapshot)
    shutil.copytree(model, installation.settings.cache_dir / hub)
    save_checkpoint(here.cache_dir / hub, seed=5)
    run_id = queue(installation, model, uri=f"hf://org/shared@{snapshot}")
    with Coordinator(installation):
        offered(installation, run_id)
        assert help_with(installation, settings=here) == 0
    assert "the content of model.safetensors changed" in said()
    assert shards_alone(harvested(installation, run_id)) == shards_alone(alone)


def test_a_helpers_shards_that_are_damaged_are_read_again(
    installation: Installation, model: Path, alone: dict[str, bytes]
) -> None:
    """Right in name, shape and size: what a disk or a store lost is seen in the values alone."""
    with_long_leases(installation)
    run_id = queue(installation, model)
    with Coordinator(installation):
        offered(installation, run_id)
        with installation.database.write() as session:
            shard = logic.claim(session, run_id, worker="helper", lease_seconds=600)
        assert shard
        with installation.artifacts.create(group_artifact(shard.folder, shard.number)) as place:
            place.mkdir()
            for hook in ("resid_post.1", "mlp_out.0"):
                file = place / shard_files.shard_name(hook, shard.number)
                write_tensors(file, {"activations": torch.ones(shard.size, 32), "norms": torch.ones(shard.size)})
                in_place(file, zero)
        with installation.database.write() as session:
            assert logic.finish(session, shard)
    done = {row.number: row for row in rows(installation, run_id)}
    assert (done[shard.number].worker, done[shard.number].attempt) == ("own", 2)
    assert harvested(installation, run_id) == alone


def test_a_helper_that_is_to_end_does_not_hash_a_checkpoint_first(
    installation: Installation, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    open_shards = shared_harvest.open_shards
    monkeypatch.setattr(shared_harvest, "open_shards", lambda *arguments: opened.append(1) or open_shards(*arguments))
    run_id = queue(installation, model)
    with Coordinator(installation):
        offered(installation, run_id)
        monkeypatch.setattr(digests, "_memory", {})  # a helper is a process of its own
        asked = iter([False])  # when it looks for work; from then on it is to end
        assert help_with(installation, stop=lambda: next(asked, True)) == 0
    assert not opened
    assert installation.run(run_id).state == "succeeded"


def test_a_run_that_waits_goes_before_helping(installation: Installation, model: Path) -> None:
    run_id = queue(installation, model)
    with Coordinator(installation):
        offered(installation, run_id)
        waiting = installation.queue(installation.add_family("other"))
        assert help_with(installation) == 0
        assert installation.run_next(worker="helper") == waiting
        assert help_with(installation) > 0


@pytest.mark.parametrize("engine_kind", ["postgres"], indirect=True)
def test_helpers_are_called_while_groups_wait_and_one_call_waits_at_a_time(
    installation: Installation, model: Path, broker_url: str
) -> None:
    def sweeper(url: str) -> Sweeper:
        app = make_app(installation.settings.model_copy(update={"broker_url": url}))
        return Sweeper(
            installation.settings, installation.database, lambda *_: None, call_helper=partial(call_helper, app)
        )

    run_id = queue(installation, model)
    broker = redis.Redis.from_url(broker_url)
    idle = sweeper(broker_url)
    assert not idle.call()
    with Coordinator(installation):
        offered(installation, run_id)
        assert [idle.call(), idle.call(), broker.llen("shards")] == [True, True, 1]
        broker.flushall()
        assert [idle.call(), broker.llen("shards")] == [True, 1], "whoever took it, the next one may come too"
        began = time.monotonic()
        with pytest.raises(OperationalError, match="refused"):
            sweeper(f"redis://127.0.0.1:{free_port()}/0").call()
        assert time.monotonic() - began < 5
    assert not idle.call(), "the harvest is over"


# Real processes, on Postgres and Valkey.


@pytest.fixture
def start_workers(start, settings: Settings, model: Path):  # type: ignore[no-untyped-def]
    """Sweeps and two workers; once each has done a harvest, so that both have loaded what takes seconds."""

    def start_workers(installation: Installation) -> list[subprocess.Popen[bytes]]:
        more = {"broker_url", "shard_positions", "roots", "threads"}
        environment = {f"FEATUREWATCH_{name.upper()}": str(getattr(settings, name)) for name in more}
        names = {"sweeps": ("featurewatch.workers.app", "--beat", "-Q", "sweeps")}
        names |= dict.fromkeys(("one", "two"), ("tests.workers.harvests", "-Q", "runs,shards"))
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING")
        started = [
            start("celery", "-A", app, "worker", *options, "-c", "1", "-n", f"{name}@%h", *quiet, **environment)
            for name, (app, *options) in names.items()
        ]
        early, at_work = [queue(installation, model, name) for name in "ab"], set[int]()

        def both() -> bool:
            """One of them may be through with both before the other has started."""
            runs = [installation.run(run_id) for run_id in early]
            at_work.update(worker_of(run) for run in runs if run.worker)
            if all(run.state == "succeeded" for run in runs):
                early.append(queue(installation, model, f"c{len(early)}"))
            return len(at_work) == 2

        wait_for(both, 90)
        wait_for(lambda: all(installation.run(run_id).state == "succeeded" for run_id in early), 60)
        return started[1:]

    return start_workers


def worker_of(row: Shard | Run) -> int:
    """The `celery` that holds it: each was started as the leader of a session."""
    return os.getsid(int(str(row.worker).split(":")[1]))


def signal_all(worker: int, number: signal.Signals) -> None:
    """To a worker's processes as a container sends it: to those of its children too, which have groups of their own."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(ProcessLookupError):  # it has ended meanwhile
            if os.getsid(int(path.name)) == worker:
                os.kill(int(path.name), number)


def holding(installation: Installation, run_id: str, helper: int) -> Shard | None:
    """A group that the helper is in the middle of; it stands still then."""
    if any(row.lease_until and not row.done_at for row in rows(installation, run_id)):
        signal_all(helper, signal.SIGSTOP)  # so that what is seen now is what is killed
        for row in rows(installation, run_id):
            if row.lease_until and not row.done_at:
                return row
        signal_all(helper, signal.SIGCONT)
    return None


@pytest.mark.parametrize("engine_kind", ["postgres"], indirect=True)
def test_celery_workers_share_and_one_is_killed(
    installation: Installation, model: Path, alone: dict[str, bytes], start_workers
) -> None:
    workers = {process.pid for process in start_workers(installation)}
    run_id = queue(installation, model, "shared")
    wait_for(lambda: installation.run(run_id).state == "succeeded", 120)
    done = rows(installation, run_id)
    assert {worker_of(row) for row in done} == workers, "both did some"
    assert harvested(installation, run_id) == alone

    run_id = queue(installation, model, "killed")
    own = worker_of(wait_for(lambda: (run := installation.run(run_id)).worker and run, 60))
    (helper,) = workers - {own}
    held = wait_for(lambda: holding(installation, run_id, helper), 60)
    signal_all(helper, signal.SIGKILL)
    wait_for(lambda: installation.run(run_id).state == "succeeded", 120)
    done = rows(installation, run_id)
    assert all(row.done_at for row in done)
    again = next(row for row in done if row.id == held.id)
    assert (worker_of(again), again.attempt) == (own, 2), "it was done by the one that is left"
    assert installation.run(run_id).attempt == 1
    assert harvested(installation, run_id) == alone
