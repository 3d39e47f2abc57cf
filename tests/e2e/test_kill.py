"""SIGKILL of the worker in the middle of every stage: another one ends the run, and nothing is lost or said twice."""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.planted_data import make_lineage
from featurewatch.service.client.types import Run
from featurewatch.service.models import Event, Verdict
from tests.e2e.parts import HOOK_POINT, WAIT_SECONDS, Service, Worker, rows_of, unfinished, write_lineage
from tests.services import wait_until
from tests.unit.activations.tiny import save_checkpoint

SHAPE = {
    "n_checkpoints": 2, "n_positions": 30_000, "width": 48, "n_planted": 40,
    "n_suppressed": 4, "n_removed": 3, "n_born": 3, "lowest_rate": 0.03,
}  # fmt: skip
OPTIONS = {"n_features": 60, "k": 3, "steps": 700, "batch_size": 256, "learning_rate": 0.003}
SETTINGS = {"lease_seconds": 5, "save_seconds": 0.05}  # beside other tests, a worker may be held up for seconds


class Installation:
    """An API without a worker, and workers that are started and killed."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.folder, self.database_url = folder, database_url
        self.service = Service(folder, database_url, worker=False, **SETTINGS)
        self.client = self.service.client
        self.uris = write_lineage(make_lineage(0, **SHAPE), folder / "releases")
        self.workers: list[Worker] = []

    def worker(self, pipelines: str | None = None) -> Worker:
        """A worker that works: the last one that was started, or a new one; of `tests.e2e.dying`, always a new one."""
        last = self.workers[-1] if self.workers else None
        if pipelines and last:
            last.end()
        if pipelines or not last or last.process.poll() is not None:
            arguments = ("--pipelines", f"tests.e2e.dying:{pipelines}") if pipelines else ()
            self.workers.append(Worker(self.folder, self.database_url, len(self.workers), *arguments, **SETTINGS))
        return self.workers[-1]

    def register(self, family: str, name: str) -> Run:
        uri = self.uris[int(name[1:]) - 1]
        return self.client.register(family, name=name, uri=uri)["run"]

    def finished(self, run: Run, worker: Worker) -> Run:
        ended = self.client.wait(run["id"], timeout=WAIT_SECONDS, interval=0.05)
        assert ended["state"] == "succeeded", f"{ended['error']}\n{worker.log()[-3000:]}"
        return ended

    def family(self, name: str) -> str:
        self.client.create_family(name, [HOOK_POINT], crosscoder=OPTIONS)
        return name

    def kill_in(self, stage: str, run: Run, worker: Worker) -> None:
        """Kill a worker where it stands still."""
        assert wait_until(worker.stands_still, WAIT_SECONDS), worker.log()
        stages = [line["stage"] for line in worker.lines("stage") if line["run"] == run["id"]]
        now = self.client.run(run["id"])
        worker.kill()
        assert (stages[-1], now["state"]) == (stage, "running")

    def verdicts(self, family: str) -> dict[str, list[dict[str, Any]]]:
        """Checkpoint -> rows of its verdicts, without what is named after this family."""
        id_ = self.client.family(family)["id"]
        names = {c["id"]: c["name"] for c in self.client.checkpoints(family)}
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in sorted(names.values())}
        for row in rows_of(self.database_url, Verdict):
            if row.pop("family_id") == id_:
                found[names[row.pop("checkpoint_id")]].append(row)
        return {name: sorted(rows, key=lambda row: row["feature"]) for name, rows in found.items()}

    def events(self, run: Run) -> Counter[str]:
        return Counter(row["type"] for row in rows_of(self.database_url, Event) if row["data"].get("run") == run["id"])

    def ended_once(self, run: Run) -> None:
        """One verdict of each feature, one event, and nothing left of what was being made."""
        family, name = run["family"], str(run["checkpoint"])
        rows = self.verdicts(family)[name]
        columns = len(self.client.code_ids(family, checkpoint=name))
        assert [row["feature"] for row in rows] == list(range(columns))
        assert self.events(run) == {"checkpoint.judged": 1}
        assert unfinished(self.folder / "data") == []


@pytest.fixture(scope="module")
def installation(module_database: tuple[Path, str]) -> Iterator[Installation]:
    """Two checkpoints of the family `quiet` were judged by a worker that nobody disturbed."""
    made = Installation(*module_database)
    with made.service:
        try:
            made.family("quiet")
            for name in ("v1", "v2"):
                made.finished(made.register("quiet", name), made.worker())
            yield made
        finally:
            for worker in made.workers:
                worker.kill()


# Before a verdict is written the kind of database makes no difference: on SQLite alone.
before_writing = pytest.mark.parametrize("module_database", ["sqlite"], indirect=True)


@before_writing
def test_killed_in_harvest(installation: Installation) -> None:
    """A model is read again from its last whole shard on."""
    model = save_checkpoint(installation.folder / "model", "llama")
    corpus = installation.folder / "corpus.jsonl"
    rng = np.random.default_rng(0)
    words = ["The", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "does", "so", "every", "day"]
    texts = [" ".join(rng.choice(words, 120)) for _ in range(400)]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for family in ("model-quiet", "model-killed"):
        installation.client.create_family(
            family,
            ["resid_post.3"],
            corpus={"uri": f"file://{corpus}", "context_length": 256},
            crosscoder={"n_features": 16, "k": 2, "steps": 40, "batch_size": 128},
        )
    register = partial(installation.client.register, name="v1", uri=f"file://{model}")
    quiet = installation.finished(register("model-quiet")["run"], installation.worker())
    assert (quiet["result"] or {})["statuses"]

    worker = installation.worker("HARVEST")
    run = register("model-killed")["run"]
    shards = installation.folder / "data" / "partial"
    installation.kill_in("harvest", run, worker)
    kept = {path.name: path.stat().st_ino for path in shards.glob("*/resid_post.3-*.safetensors")}
    assert kept

    ended = installation.finished(run, installation.worker())
    assert ended["attempt"] == 2
    folder = installation.folder / "data" / "artifacts" / installation.client.family("model-killed")["id"]
    whole = {path.name: path.stat().st_ino for path in folder.glob("activations-*/resid_post.3-*.safetensors")}
    assert len(whole) > len(kept), "it was killed before the last shard"
    assert whole | kept == whole, "whole shards are kept"
    installation.ended_once(run)
    assert installation.verdicts("model-killed") == installation.verdicts("model-quiet")


@before_writing
def test_killed_in_fit(installation: Installation) -> None:
    family = installation.family("first")
    worker = installation.worker("FIT")
    run = installation.register(family, "v1")
    installation.kill_in("fit", run, worker)
    assert len(list((installation.folder / "data" / "partial").glob("*.fit"))) == 1

    worker = installation.worker()
    assert installation.finished(run, worker)["attempt"] == 2
    resumed = worker.lines("resuming the fit")
    assert [line["steps"] for line in resumed] == [OPTIONS["steps"]]
    assert resumed[0]["step"] > 0.1 * OPTIONS["steps"], "it must go on where it was saved, not at the beginning"
    installation.ended_once(run)
    assert installation.verdicts(family)["v1"] == installation.verdicts("quiet")["v1"], "bit by bit"


@before_writing
def test_killed_in_refit(installation: Installation) -> None:
    """A re-fit goes on bit by bit too, and its ids and their lineage are those of one that nobody disturbed."""

    def start(family: str) -> Run:
        installation.finished(installation.register(installation.family(family), "v1"), installation.worker())
        return installation.client.register(family, name="v2", uri=installation.uris[1], fit="refit")["run"]

    def links(family: str) -> list[tuple[Any, ...]]:
        return [(link["kind"], link["old"], link["new"], link["score"]) for link in installation.client.lineage(family)]

    installation.finished(start("refit-quiet"), installation.worker())
    worker = installation.worker("REFIT")
    run = start("refit-killed")
    installation.kill_in("refit", run, worker)
    worker = installation.worker()
    assert installation.finished(run, worker)["attempt"] == 2
    assert [line["steps"] for line in worker.lines("resuming the fit")] == [OPTIONS["steps"]]
    assert installation.verdicts("refit-killed") == installation.verdicts("refit-quiet")
    assert links("refit-killed") == links("refit-quiet")
    assert sum(kind == "carried" for kind, *_ in links("refit-quiet")) >= 30, "37 of the planted ones were in v1"
    assert installation.events(run) == {"checkpoint.judged": 1}
    assert unfinished(installation.folder / "data") == []


@before_writing
def test_killed_in_extend_and_measure(installation: Installation) -> None:
    """A run has three attempts: two are killed, and the third one must do."""
    family = installation.family("second")
    worker = installation.worker("EXTEND")
    installation.finished(installation.register(family, "v1"), worker)
    run = installation.register(family, "v2")
    installation.kill_in("extend", run, worker)
    installation.kill_in("measure", run, installation.worker("MEASURE"))
    assert installation.finished(run, installation.worker())["attempt"] == 3
    installation.ended_once(run)
    # `extend` passes its solutions on in memory. Here they are solved again from stored data: the last digits differ.
    expected, got = installation.verdicts("quiet")["v2"], installation.verdicts(family)["v2"]
    assert len(got) == len(expected) > OPTIONS["n_features"], "new features are there, once"
    for row, other in zip(expected, got, strict=True):
        close = {name: pytest.approx(x, rel=1e-3, abs=1e-6) if isinstance(x, float) else x for name, x in row.items()}
        assert other == close, f"feature {row['feature']}"


def test_killed_while_it_judges(installation: Installation) -> None:
    """First before the verdicts are written, then in their transaction, when all rows are there but the commit."""
    family = installation.family("third")
    worker = installation.worker("JUDGE")
    run = installation.register(family, "v1")
    installation.kill_in("judge", run, worker)
    assert installation.verdicts(family) == {"v1": []}

    worker = installation.worker("WRITING")
    assert worker.process.wait(timeout=WAIT_SECONDS) == -signal.SIGKILL, worker.log()
    assert [line["stage"] for line in worker.lines("stage")][-1] == "judge"
    assert installation.verdicts(family) == {"v1": []}
    assert installation.events(run) == {}
    assert installation.client.family(family)["n_features"] == 0

    worker = installation.worker()
    assert installation.finished(run, worker)["attempt"] == 3
    assert worker.lines("resuming the fit") == [], "the fit was done, and is not done again"
    installation.ended_once(run)
    assert installation.verdicts(family)["v1"] == installation.verdicts("quiet")["v1"]


@before_writing
def test_what_killed_writers_left_is_removed(installation: Installation) -> None:
    """A half-written artifact has a name of its own each time; the family's next run removes it."""
    family = installation.family("fourth")
    place = installation.folder / "data" / "artifacts" / installation.client.family(family)["id"]
    place.mkdir(parents=True)
    (place / ".code-0123.safetensors.0123.new").write_bytes(b"half")
    (place / ".activations-0123.0123.new").mkdir()
    (place / ".activations-0123.0123.new" / "shard.safetensors").write_bytes(b"half")
    partial = installation.folder / "data" / "partial"
    (partial / "activations-old").mkdir(parents=True)
    (partial / "new.fit").write_bytes(b"half")
    month_ago = time.time() - 30 * 86400
    os.utime(partial / "activations-old", (month_ago, month_ago))
    installation.finished(installation.register(family, "v1"), installation.worker())
    assert unfinished(installation.folder / "data") == ["partial/new.fit"], "it may still be wanted by a retry"
    (partial / "new.fit").unlink()
