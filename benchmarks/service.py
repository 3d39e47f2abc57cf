"""The API under load: `python -m benchmarks.service --write-docs` writes docs/benchmarks.md.

A family of many checkpoints (`service_data`) is written to SQLite and to a Postgres started for the benchmark. The API
runs in two processes, as `featurewatch up` starts it on SQLite, and as the compose file starts it on Postgres with a
key.

- *alone*: one client requests features, trajectories, comparisons and reports of any checkpoints;
- *busy*: all clients do so at once without pauses, while another process acts as a worker, with heartbeats and an
  occasional judged checkpoint;
- *paced*: the same, with a pause of `--pause` seconds on average after each response;
- *floor*: all clients request `/healthz`, which does nothing;
- *burst*: simultaneous registrations, none of which may be lost or duplicated;
- *memory*: the resident size of the API over many requests, and its slope.

Clients, worker and server share the machine. `--quick` is a smoke test of a minute.
"""

import argparse
import http.client
import json
import multiprocessing
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import linregress
from scipy.stats import t as student
from sqlalchemy import func, select, text

from benchmarks.service_data import FAMILY, LEASE_S, NEW, Filler, Lineage
from featurewatch.service import migrate
from featurewatch.service.auth import logic as auth
from featurewatch.service.config import Settings
from featurewatch.service.families import logic as families
from featurewatch.service.families.schemas import FamilyIn
from featurewatch.service.models import Checkpoint, Family, Run
from featurewatch.service.runs import logic as runs
from featurewatch.service.verdicts.statuses import Status
from featurewatch.workers.__main__ import NICE
from tests.services import free_port, postgres_server

KINDS = ("features", "trajectory", "diff", "report")
GOAL_MS = 50.0
BURST = 200
BEAT_S, JUDGED_EVERY_S = 1.0, 20.0
START_S = 60.0
SAMPLES = 50
"""Sizes of the API's memory that are taken; the first fifth is left out of the slope."""
ROOT = Path(__file__).parents[1]
PAGE, COMPOSE = ROOT / "docs" / "benchmarks.md", ROOT / "docker-compose.yml"
SAFE = dict.fromkeys(("fsync", "synchronous_commit", "full_page_writes", "autovacuum"), "on")
"""Optional parts that only tests leave out."""
BEGIN, END = "<!-- service -->", "<!-- /service -->"
LEFT = ("", "load", "request", "page", "scrolled")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="The API under load, on SQLite and on Postgres.")
    parser.add_argument("--features", type=int, default=32_768, help="that the newest checkpoint has")
    parser.add_argument("--checkpoints", type=int, default=50)
    parser.add_argument("--hook-points", type=int, default=4)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=120, help="of each load")
    parser.add_argument("--pause", type=float, default=0.5, help="between two requests of a paced client, on average")
    parser.add_argument("--requests", type=int, default=100_000, help="over which memory is watched; 0: it is not")
    parser.add_argument("--engine", choices=["sqlite", "postgres"], action="append", help="left out: both")
    parser.add_argument("--quick", action="store_true", help="small and short")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write-docs", action="store_true", help=f"put the tables into docs/{PAGE.name}")
    parser.add_argument("--json", action="store_true", help="nothing but the object on standard output")
    options = parser.parse_args()
    if options.quick:
        options.features, options.checkpoints, options.seconds, options.requests = 2048, 12, 5, 1000
    log = sys.stderr if options.json else sys.stdout
    result: dict[str, Any] = {"seed": options.seed, "machine": machine()}
    result |= {name: getattr(options, name) for name in ("features", "checkpoints", "hook_points", "clients", "pause")}
    for engine in options.engine or ["sqlite", "postgres"]:
        with (
            tempfile.TemporaryDirectory(prefix="featurewatch-service-") as folder,
            installed(engine, folder) as settings,
        ):
            filler, result[engine] = filled(settings, options)
            print(f"{engine}: {result[engine]}", file=log, flush=True)
            result[engine] |= measure(
                filler, options, lambda line, e=engine: print(f"{e}: {line}", file=log, flush=True)
            )
    if options.write_docs:
        write_page(result)
    print(json.dumps(result))


@contextmanager
def installed(engine: str, folder: str) -> Iterator[Settings]:
    """Settings of an empty installation."""
    data = Path(folder).resolve() / "data"
    data.mkdir()
    if engine == "sqlite":
        settings = Settings(data_dir=data, database_url="", artifacts="", require_keys=False)
        migrate.upgrade(settings)
        yield settings
        return
    with postgres_server(options=SAFE | of_compose()) as server:
        name = server.create(prefix="fw_benchmark")
        try:
            settings = Settings(
                data_dir=data, database_url=server.database_url(name), artifacts="", require_keys=True,
                requests_per_minute=1_000_000,  # counted, but never too many
            )  # fmt: skip
            migrate.upgrade(settings)
            yield settings
        finally:
            server.drop(name)


def of_compose() -> dict[str, str]:
    """Settings of the Postgres of docker-compose.yml."""
    command = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["postgres"]["command"]
    return dict(setting.split("=") for setting in command if "=" in setting)


def filled(settings: Settings, options: argparse.Namespace) -> tuple[Filler, dict[str, Any]]:
    """The installation with its family, and what it took."""
    hooks = [f"resid_post.{6 * (1 + place)}" for place in range(options.hook_points)]
    filler = Filler(settings, Lineage(options.features - NEW * (options.checkpoints - 1), hooks, options.seed))
    began = time.perf_counter()
    filler.fill(options.checkpoints)
    took = time.perf_counter() - began
    with filler.database() as database:
        if not database.is_sqlite:  # as autovacuum would do in a minute
            with database.writer.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text("VACUUM ANALYZE"))
        size = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
        size = size if database.is_sqlite else "SELECT pg_database_size(current_database())"
        with database.read() as session:
            megabytes = round((session.scalar(text(size)) or 0) / 1e6)
    return filler, {"fill_seconds": round(took, 1), "megabytes": megabytes}


def measure(filler: Filler, options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """All figures of one installation."""
    with filler.database() as database, database.write() as session:
        key = auth.create(session, name="benchmark", scopes=["write"])[1]
    with serving(filler.settings, key) as service:
        asked = Asked(options.features, options.checkpoints)
        # A warm-up: one-off reads of each process are excluded.
        asked.every_checkpoint(service)
        load(service, asked.anything, options.clients, seconds=options.seconds, seed=options.seed)
        found: dict[str, Any] = {"floor": load(service, asked.floor, options.clients, count=2000)}
        found["alone"] = load(service, asked.anything, 1, count=200, seed=options.seed)
        say(f"{found}")
        with working(filler, options.checkpoints) as judged:
            for name, pause in (("busy", 0.0), ("paced", options.pause)):
                seed = options.seed + len(name)
                found[name] = load(
                    service, asked.anything, options.clients, seconds=options.seconds, pause=pause, seed=seed
                )
                say(f"{name}: {found[name]}")
        found["judged_meanwhile"] = judged.value
        found["burst"] = burst(service, filler)
        say(f"{found['burst']}")
        if options.requests:
            found["memory"] = memory(service, asked, options)
            say(f"{found['memory']}")
    return found


@dataclass(frozen=True)
class Service:
    """A running API."""

    host: str
    port: int
    key: str
    process: subprocess.Popen[str]

    def connect(self) -> http.client.HTTPConnection:
        """A persistent connection."""
        return http.client.HTTPConnection(self.host, self.port, timeout=120)

    def ask(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any = None
    ) -> tuple[int, bytes]:
        """Status and body of an answer."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def megabytes(self) -> float:
        """Resident size of all its processes."""
        pids = [self.process.pid]
        for pid in pids:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                pids += [int(child) for child in children.read_text().split()]
        return sum(_resident(pid) for pid in pids) / 1e3


def _resident(pid: int) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


@contextmanager
def serving(settings: Settings, key: str) -> Iterator[Service]:
    """The API in a process of its own, started as `featurewatch up` or the compose file starts it."""
    port = free_port()
    if settings.database_url:
        command = [
            "-m",
            "uvicorn",
            "--factory",
            "featurewatch.service.app:create_app",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        command += ["--no-server-header", "--workers", "2"]
    else:
        command = ["-c", "from featurewatch.service.cli import main; main()", "up", "--no-worker", "--port", str(port)]
        command += ["--processes", "2"]
    with (settings.data_dir / "api.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *command], env=os.environ | settings.environment(), stdout=log, stderr=log, text=True
        )
    service = Service("127.0.0.1", port, key, process)
    try:
        deadline = time.monotonic() + START_S
        while not _ready(service):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the API did not come up:\n{(settings.data_dir / 'api.log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield service
    finally:
        process.terminate()
        process.wait()


def _ready(service: Service) -> bool:
    try:
        return service.ask(service.connect(), "GET", "/readyz")[0] == 200
    except OSError:
        return False


@dataclass(frozen=True)
class Asked:
    """The requests of clients: any feature, any checkpoint, any two checkpoints."""

    features: int
    checkpoints: int

    def every_checkpoint(self, service: Service) -> None:
        """Request each checkpoint's report and its comparison with the first, once."""
        connections = [service.connect() for _ in range(8)]  # so that each of the processes has some
        for number in range(self.checkpoints):
            for path in (f"checkpoints/v{number}/report", f"diff?from=v0&to=v{number}"):
                for connection in connections:
                    service.ask(connection, "GET", f"/v1/families/{FAMILY}/{path}")

    def floor(self, rng: random.Random) -> tuple[str, str]:
        """A request without work."""
        return "floor", "/healthz"

    def anything(self, rng: random.Random) -> tuple[str, str]:
        """(kind, path) of one of the four kinds, uniformly."""
        kind, base = rng.choice(KINDS), f"/v1/families/{FAMILY}"
        first, second = rng.sample(range(self.checkpoints), 2)
        match kind:
            case "features":
                return kind, f"{base}/features?checkpoint=v{first}&status={rng.choice(list(Status))}"
            case "trajectory":
                return kind, f"{base}/features/F{rng.randrange(self.features)}/trajectory"
            case "diff":
                return kind, f"{base}/diff?from=v{first}&to=v{second}"
            case _:
                return kind, f"{base}/checkpoints/v{first}/report"


def load(
    service: Service, draw: Callable[[random.Random], tuple[str, str]], clients: int, *,
    seconds: float = float("inf"), count: float = float("inf"), pause: float = 0, seed: int = 0,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Percentiles of the milliseconds by kind, of clients with one request at a time."""
    took: dict[str, list[float]] = defaultdict(list)
    deadline, left = time.monotonic() + seconds, iter(range(int(min(count, sys.maxsize))))

    def client(number: int) -> None:
        rng, connection = random.Random(f"{seed} {number}"), service.connect()
        while time.monotonic() < deadline and next(left, None) is not None:
            kind, path = draw(rng)
            began = time.perf_counter()
            status, body = service.ask(connection, "GET", path)
            took[kind].append((time.perf_counter() - began) * 1e3)
            if status != 200:
                raise SystemExit(f"{path}: {status} {body[:500]!r}")
            time.sleep(rng.expovariate(1 / pause) if pause else 0)

    together([lambda number=number: client(number) for number in range(clients)])
    return {kind: spread(took[kind]) for kind in sorted(took)}


def together(work: list[Callable[[], None]]) -> None:
    """Run all tasks concurrently, each in a thread, and raise the first exception."""
    failed: list[BaseException] = []

    def each(one: Callable[[], None]) -> None:
        try:
            one()
        except BaseException as error:  # noqa: BLE001 - it is raised below
            failed.append(error)

    threads = [threading.Thread(target=each, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def spread(milliseconds: list[float]) -> dict[str, float]:
    """Percentiles."""
    p50, p95, p99 = np.percentile(milliseconds, [50, 95, 99]).round(2).tolist()
    return {"n": len(milliseconds), "p50": p50, "p95": p95, "p99": p99}


@contextmanager
def working(filler: Filler, place: int) -> Iterator[Any]:
    """A worker in a process of its own; yields how many checkpoints it has judged."""
    stop, judged = multiprocessing.Event(), multiprocessing.Value("i", 0)
    process = multiprocessing.Process(target=_work, args=(filler, place, stop, judged))
    process.start()
    try:
        yield judged
    finally:
        stop.set()
        process.join()
    if process.exitcode:
        raise SystemExit("the worker failed")


def _work(filler: Filler, place: int, stop: Event, judged: Any) -> None:
    """Register, send heartbeats and judge until told to stop, then finish the current checkpoint."""
    os.nice(NICE)  # as the worker of `featurewatch up`; in compose it has a third of the API's `cpu_shares`
    with filler.database() as database:
        while not stop.is_set():
            run_id, attempt = filler.begin(database, place)
            began = time.monotonic()
            while time.monotonic() - began < JUDGED_EVERY_S and not stop.wait(BEAT_S):
                with database.write() as session:
                    runs.heartbeat(
                        session, run_id=run_id, attempt=attempt, lease_seconds=LEASE_S, stage="harvest",
                        progress=(time.monotonic() - began) / JUDGED_EVERY_S, detail={}, seconds={},
                    )  # fmt: skip
            filler.judge(database, place, (run_id, attempt))
            place += 1
            judged.value += 1


def burst(service: Service, filler: Filler) -> dict[str, Any]:
    """Registrations of different checkpoints, all sent at the same moment."""
    answers: list[tuple[int, bytes]] = []
    with filler.database() as database, database.write() as session:
        body = FamilyIn(name="burst", hook_points=filler.lineage.hook_points)
        families.create(session, filler.settings, body)
    start = threading.Barrier(BURST)

    def register(number: int) -> None:
        connection = service.connect()
        connection.connect()
        start.wait()
        body = {"name": f"v{number}", "uri": f"hf://org/model@v{number}"}
        answers.append(service.ask(connection, "POST", "/v1/families/burst/checkpoints", body))

    began = time.perf_counter()
    together([lambda number=number: register(number) for number in range(BURST)])
    took = time.perf_counter() - began
    accepted = {json.loads(body)["run"]["id"] for status, body in answers if status in (201, 202)}
    with filler.database() as database, database.read() as session:
        there = select(func.count(func.distinct(Checkpoint.name)), func.count()).select_from(Checkpoint)
        names, rows = session.execute(there.join(Family).where(Family.name == "burst")).one()
        queued = set(session.scalars(select(Run.id).join(Family).where(Family.name == "burst")))
    return {
        "sent": BURST,
        "answers": dict(Counter(str(status) for status, _ in answers)),
        "checkpoints": names,
        "rows": rows,
        "runs_lost": len(accepted - queued),
        "runs_twice": len(queued - accepted),
        "seconds": round(took, 2),
    }


def memory(service: Service, asked: Asked, options: argparse.Namespace) -> dict[str, Any]:
    """Resident size over many requests. The slope's interval takes samples for independent."""
    sizes, done = [service.megabytes()], [0]
    for sample in range(SAMPLES):
        count = options.requests // SAMPLES
        load(service, asked.anything, options.clients, count=count, seed=options.seed + 2 + sample)
        done.append(done[-1] + count)
        sizes.append(service.megabytes())
    settled = slice(SAMPLES // 5, None)
    line = linregress(np.array(done[settled]) / 1e5, sizes[settled])
    reach = float(student.ppf(0.975, len(done[settled]) - 2)) * line.stderr
    return {
        "requests": done[-1],
        "megabytes_first": round(sizes[0], 1),
        "megabytes_settled": round(sizes[settled][0], 1),
        "megabytes_last": round(sizes[-1], 1),
        "megabytes_most": round(max(sizes), 1),
        "slope_per_100000": round(float(line.slope), 2),
        "slope_ci": [round(float(line.slope + side * reach), 2) for side in (-1, 1)],
    }


def machine() -> str:
    """Processor and cores that this process may use."""
    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def write_page(result: dict[str, Any]) -> None:
    """Write the tables of a run to docs/benchmarks.md."""
    engines = [name for name in ("sqlite", "postgres") if name in result]
    lines = [
        f"{result['features']:,} features x {result['checkpoints']} checkpoints x {result['hook_points']} hook points; "
        f"{result['clients']} clients, pause {result['pause']:g} s; {result['machine']}; seed {result['seed']}.",
        "",
        *table_lines(
            ["", "load", "request", "requests", "p50, ms", "p95, ms", "p99, ms", f"p95 at most {GOAL_MS:.0f} ms"],
            [
                [engine, load, kind, f"{took['n']:,}", *(f"{took[name]:.1f}" for name in ("p50", "p95", "p99")),
                 ("yes" if took["p95"] <= GOAL_MS else "no") if load in ("busy", "paced") else ""]
                for engine in engines
                for load in ("floor", "alone", "busy", "paced")
                for kind, took in result[engine][load].items()
            ],
        ),
        "",
        *table_lines(
            ["", "database", "written in", "judged meanwhile", "registrations", "accepted", "lost", "twice",
             "requests", "memory, MB", "slope, MB per 100,000 requests"],
            [_row(engine, result[engine]) for engine in engines],
        ),
    ]  # fmt: skip
    write_between(BEGIN, END, "\n".join(lines))


def write_between(begin: str, end: str, text: str) -> None:
    """Replace the text between two marks of docs/benchmarks.md."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def _row(engine: str, found: dict[str, Any]) -> list[str]:
    told, size = found["burst"], found.get("memory")
    accepted = sum(count for status, count in told["answers"].items() if status in ("201", "202"))
    watched = ["", "not watched", ""]
    if size:
        low, high = size["slope_ci"]
        watched = [
            f"{size['requests']:,}", f"{size['megabytes_settled']:.0f} to {size['megabytes_last']:.0f}",
            f"{size['slope_per_100000']:.1f} ({low:.1f} to {high:.1f})",
        ]  # fmt: skip
    return [
        engine, f"{found['megabytes']:,} MB", f"{found['fill_seconds']:.0f} s", f"{found['judged_meanwhile']}",
        f"{told['sent']} in {told['seconds']:.1f} s", f"{accepted}", f"{told['runs_lost']}", f"{told['runs_twice']}",
        *watched,
    ]  # fmt: skip


def table_lines(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table, columns of words to the left and those of numbers to the right."""
    return [f"| {' | '.join(row)} |" for row in [head, ["---" if cell in LEFT else "---:" for cell in head], *rows]]


if __name__ == "__main__":
    main()
