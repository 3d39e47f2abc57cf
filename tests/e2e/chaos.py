"""An installation whose parts are killed and started again at random moments, while checkpoints are onboarded."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import redis
from safetensors import safe_open

from benchmarks.planted_data import make_lineage
from featurewatch.service.client import ApiError, Client, ClientError
from featurewatch.service.models import Attempt, Checkpoint, Code, Delivery, Event, Run, Verdict
from tests.e2e.parts import HOOK_POINT, environment, rows_of, write_lineage
from tests.services import Postgres, Process, Valkey, free_port, postgres_server, valkey_server, wait_until

CHECKPOINTS = 3
SHAPE = {
    "n_checkpoints": CHECKPOINTS, "n_positions": 4_000, "width": 32, "n_planted": 24,
    "n_suppressed": 3, "n_removed": 2, "n_born": 2, "lowest_rate": 0.05,
}  # fmt: skip
OPTIONS = {"n_features": 32, "k": 3, "steps": 300, "batch_size": 256, "learning_rate": 0.003}
SETTINGS = {
    "lease_seconds": 3, "save_seconds": 0.2, "require_keys": "false", "webhook_allow": "127.0.0.1/32",
    "secret_key": "a key for the tests, long enough",
}  # fmt: skip
PAUSE = (0.5, 4.0)
"""Seconds between two disturbances"""
WORKERS = 2
REVIVED_AFTER = 0.5
END_SECONDS = 900.0
QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=INFO")
FEATUREWATCH = [sys.executable, "-c", "from featurewatch.service.cli import main; main()"]


class Receiver:
    """A real HTTP server that notes what webhooks bring. It refuses the first delivery of every other event."""

    def __init__(self) -> None:
        self.got: dict[str, list[bytes]] = defaultdict(list)
        noted, refused, lock = self.got, set[str](), threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body, id_ = self.rfile.read(int(self.headers["content-length"])), self.headers["webhook-id"]
                with lock:
                    refuse = len(refused) < len(noted) and id_ not in noted and id_ not in refused
                    refused.update({id_} if refuse else ())
                    if not refuse:
                        noted[id_].append(body)
                self.send_response(500 if refuse else 204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Not to the terminal."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/"


class Part:
    """A process that is started again whenever it ends, as a supervisor does it."""

    def __init__(self, name: str, command: list[str], variables: dict[str, str], log: Path) -> None:
        self.name, self.command, self.variables, self.log = name, command, variables, log
        self.wanted, self.starts = True, 0
        self._start()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def kill(self) -> None:
        """SIGKILL, with the processes that it has started: as a container goes."""
        os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> None:
        self.wanted = False
        self._watcher.join()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=40)
        finally:
            if self.process.poll() is None:
                self.kill()

    def _start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.starts += 1

    def _watch(self) -> None:
        while self.wanted:
            if self.process.poll() is not None:
                time.sleep(REVIVED_AFTER)
                self._start()
            time.sleep(0.05)


class Deployment:
    """API, two workers and sweeps: embedded on SQLite, or Celery on a Postgres and a Valkey of its own."""

    def __init__(self, folder: Path, kind: str, seed: int) -> None:
        self.folder, self.kind, self.random = folder, kind, random.Random(seed)
        self.postgres: Postgres | None = None
        self.valkey: Valkey | None = None
        self.parts: list[Part] = []
        self.receiver = Receiver()
        self.done: Counter[str] = Counter()
        self.retried: Counter[str] = Counter()
        """Why runs failed that were then retried"""

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        extra: dict[str, object] = {}
        if self.kind == "sqlite":
            self.database_url = f"sqlite:///{self.folder}/featurewatch.db"
        else:
            self.postgres = self._stack.enter_context(postgres_server(private=True))
            self.valkey = self._stack.enter_context(valkey_server(private=True))
            self.database_url = self.postgres.database_url(self.postgres.create())
            extra["broker_url"] = self.valkey.url
        self.variables = environment(self.folder, self.database_url, **SETTINGS, **extra)
        subprocess.run([*FEATUREWATCH, "db", "upgrade"], env=self.variables, check=True, capture_output=True)
        self.client = Client(url := f"http://127.0.0.1:{(port := free_port())}")
        for name, command in self._commands(port).items():
            self.parts.append(Part(name, command, self.variables, self.folder / f"{name}.log"))
            self._stack.callback(self.parts[-1].end)
        assert wait_until(lambda: _answers(self.client), 60), url
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self._stack.close()
        self.receiver.server.shutdown()

    def _commands(self, port: int) -> dict[str, list[str]]:
        if self.kind == "sqlite":
            workers = {f"worker-{i}": [sys.executable, "-m", "featurewatch.workers"] for i in range(WORKERS)}
            return {"api": [*FEATUREWATCH, "up", "--no-worker", "--port", str(port)], **workers}
        celery = [sys.executable, "-m", "celery", "-A", "featurewatch.workers.app", "worker", "-c", "1", *QUIET]
        serve = [
            "uvicorn",
            "--factory",
            "featurewatch.service.app:create_app",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        workers = {f"worker-{i}": [*celery, "-Q", "runs,cpu,shards", "-n", f"runs{i}@%h"] for i in range(WORKERS)}
        return {
            "api": [sys.executable, "-m", *serve],
            **workers,
            "sweeps": [*celery, "--beat", "-Q", "sweeps", "-n", "sweeps@%h"],
        }

    @contextmanager
    def disturbed(self) -> Iterator[None]:
        """One thing after the other goes wrong in the block: in turns of random order, so that each of them does."""
        stop = threading.Event()
        thread = threading.Thread(target=self._disturb, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def one_turn(self) -> bool:
        """Wait until each of the disturbances has come; whether they did."""
        return wait_until(lambda: set(self.done) == set(self._disturbances()), 120)

    def _disturb(self, stop: threading.Event) -> None:
        while True:
            turns = list(self._disturbances().items())
            self.random.shuffle(turns)
            for name, act in turns:
                if stop.wait(self.random.uniform(*PAUSE)):
                    return
                act()
                self.done[name] += 1

    def _disturbances(self) -> dict[str, Callable[[], None]]:
        acts: dict[str, Callable[[], None]] = {f"SIGKILL {part.name}": part.kill for part in self.parts}
        if self.postgres and self.postgres.process and self.valkey and self.valkey.process:
            postgres, valkey = self.postgres.process, self.valkey.process
            acts["restart Postgres"] = lambda: self._restart(postgres, signal.SIGQUIT)  # at once, as in a crash
            acts["restart Valkey"] = lambda: self._restart(valkey, signal.SIGKILL)
            acts["FLUSHALL"] = self._flush
        return acts

    def _restart(self, process: Process, sig: signal.Signals) -> None:
        process.stop(sig)
        time.sleep(self.random.uniform(0.1, 2.0))
        process.start()

    def _flush(self) -> None:
        assert self.valkey
        assert wait_until(self.valkey.ready, 20)
        redis.Redis.from_url(self.valkey.url).flushall()

    # What is asked of it

    def onboard(self, onboardings: int) -> dict[str, str]:
        """Register checkpoints of families, CHECKPOINTS each; run id -> checkpoint id of all that was accepted."""
        uris = write_lineage(make_lineage(0, **SHAPE), self.folder / "releases")
        self.patiently(lambda: self.client.create_webhook(self.receiver.url))
        accepted: dict[str, str] = {}
        for number in range(onboardings):
            family = f"family-{number // CHECKPOINTS}"
            if number % CHECKPOINTS == 0:
                self.patiently(lambda f=family: self.client.create_family(f, [HOOK_POINT], crosscoder=OPTIONS))
            made = self.patiently(lambda f=family, n=number % CHECKPOINTS: self._register(f, n, uris[n]))
            accepted[made["run"]["id"]] = made["checkpoint"]["id"]
            time.sleep(self.random.uniform(0, 0.5))
        return accepted

    def _register(self, family: str, number: int, uri: str) -> Any:
        parent = f"v{number}" if number else None
        while True:
            try:
                return self.client.register(family, name=f"v{number + 1}", uri=uri, parent=parent)
            except ApiError as error:
                if error.code != "parent-failed":
                    raise
                self._retry_failed()

    def _retry_failed(self) -> int:
        """Retry runs that lost a worker in each of their attempts, as a person would; how many."""
        failed = [run for run in self.client.runs() if run["state"] == "failed"]
        for run in sorted(failed, key=lambda run: str(run["created_at"])):
            self.client.retry(run["id"])
            self.retried[(run["error"] or {"code": "?"})["code"]] += 1
        return len(failed)

    def patiently(self, call: Callable[[], Any]) -> Any:
        """The answer of a call that is repeated as long as nobody answers: a CI job does no less."""
        deadline = time.monotonic() + END_SECONDS
        while True:
            try:
                return call()
            except ClientError as error:
                if (isinstance(error, ApiError) and error.status < 500) or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def end(self) -> None:
        """Wait until nothing is to be done any more."""
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            if not self.patiently(self._retry_failed):
                states = {row["state"] for row in rows_of(self.database_url, Run)}
                if states == {"succeeded"} and not any(
                    row["state"] == "pending" for row in rows_of(self.database_url, Delivery)
                ):
                    return
            time.sleep(0.5)
        left = [row for row in rows_of(self.database_url, Run) if row["state"] != "succeeded"]
        raise AssertionError(f"not ended: {[(row['id'], row['state'], row['stage'], row['error']) for row in left]}")

    # What must hold

    def check(self, accepted: dict[str, str]) -> None:
        """Every registration kept, every verdict once, no two attempts at once, nothing half written, all told."""
        runs = {row["id"]: row for row in rows_of(self.database_url, Run)}
        checkpoints = {row["id"]: row for row in rows_of(self.database_url, Checkpoint)}
        assert {id_: runs[id_]["checkpoint_id"] for id_ in accepted} == accepted, "an accepted registration is gone"
        assert {row["state"] for row in checkpoints.values()} == {"judged"}
        assert len(checkpoints) == len(accepted)
        self._check_attempts(runs)
        self._check_verdicts(checkpoints)
        self._check_artifacts()
        self._check_events(set(accepted))

    def _check_attempts(self, runs: dict[str, dict[str, Any]]) -> None:
        spans = defaultdict(list)
        for row in rows_of(self.database_url, Attempt):
            assert row["outcome"], f"attempt {row['number']} at {row['run_id']} has no end"
            spans[runs[row["run_id"]]["family_id"]].append((row["started_at"], row["ended_at"]))
        for family, times in spans.items():
            ordered = sorted(times)
            assert all(first[1] <= second[0] for first, second in pairwise(ordered)), f"two runs of {family} at once"

    def _check_verdicts(self, checkpoints: dict[str, dict[str, Any]]) -> None:
        features: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for row in rows_of(self.database_url, Verdict):
            features[row["checkpoint_id"]].append((row["feature"], row["status"]))
        columns = {row["checkpoint_id"]: row["n_features"] for row in rows_of(self.database_url, Code)}
        alike = defaultdict(set)
        for id_, checkpoint in checkpoints.items():
            found = sorted(features[id_])
            assert [number for number, _ in found] == list(range(len(found)))
            assert len(found) == columns[id_], checkpoint["name"]
            alike[checkpoint["name"]].add(tuple(found))
        # Every family has the same checkpoints and options: whatever was killed, they say the same.
        assert {name: len(told) for name, told in alike.items()} == dict.fromkeys(alike, 1)

    def _check_artifacts(self) -> None:
        artifacts = self.folder / "data" / "artifacts"
        whole = [path for path in artifacts.rglob("*.safetensors") if not any(p.startswith(".") for p in path.parts)]
        assert whole
        for path in whole:
            with safe_open(path, "pt") as file:  # refuses a file that is shorter than it says
                assert list(file.keys())

    def _check_events(self, run_ids: set[str]) -> None:
        events = {row["id"]: row for row in rows_of(self.database_url, Event)}
        judged = Counter(row["data"]["run"] for row in events.values() if row["type"] == "checkpoint.judged")
        assert judged == dict.fromkeys(run_ids, 1)
        assert set(self.receiver.got) == set(events), "each event came, under its one id"
        for id_, bodies in self.receiver.got.items():
            assert len(set(bodies)) == 1, "a repeated delivery has the same bytes"
            assert json.loads(bodies[0])["type"] == events[id_]["type"]


def _answers(client: Client) -> bool:
    try:
        return client.json("GET", "/readyz")["status"] == "ready"
    except ClientError:
        return False
