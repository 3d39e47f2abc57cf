"""docker-compose.yml and Dockerfile: every name resolves, and the commands in them do the work.

No container engine is needed: the last test runs each service's own command as a local process, against a private
Postgres and Valkey.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
import yaml
from sqlalchemy.engine import make_url

from benchmarks.planted_data import make_lineage, write_checkpoint
from featurewatch.service.client import Client
from featurewatch.service.config import Settings
from featurewatch.service.runs.kinds import QUEUES
from tests.services import Postgres, Valkey, free_port, valkey_binary, wait_until

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
VARIABLE = re.compile(r"\$(?:\$|\{([A-Z_]+)(?::([?-])([^}]*))?\})")


def interpolate(text: str, values: Mapping[str, str]) -> str:
    """A string of the file as compose reads it; KeyError where a required variable is missing."""

    def put(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if name is None:
            return "$"
        return values.get(name) or rest if kind == "-" else values[name]

    return VARIABLE.sub(put, text)


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, str):
        yield value
    elif not isinstance(value, int | float | bool | None):
        for item in value:
            yield from strings(item)


@pytest.mark.parametrize(
    "check",
    [
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"],
        ["hadolint", "--failure-threshold", "info", "Dockerfile"],
    ],
    ids=lambda check: check[0],
)
def test_schema_and_linter(check: list[str]) -> None:
    done = subprocess.run([BIN / check[0], *check[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_build_targets_and_images() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.M))
    version = import_module("featurewatch.service").__version__
    for name, service in OURS.items():
        target = service["build"]["target"]
        assert target in stages, f"{name} is built from a stage that is not there"
        assert service["image"] == f"featurewatch-{target}:{version}"
    assert OURS["worker"]["build"]["target"] == "worker"
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M):
        for name in copied.split():
            assert (ROOT / name).exists(), f"the Dockerfile copies {name}"
            assert f"!{name}" in (ROOT / ".dockerignore").read_text(), f".dockerignore hides {name}"


def test_dependencies_are_services_that_can_be_waited_for() -> None:
    for name, service in SERVICES.items():
        for other, rule in service.get("depends_on", {}).items():
            assert other in SERVICES, f"{name} waits for {other}"
            if rule["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], f"{name} waits for the health of {other}"
            else:
                assert rule["condition"] == "service_completed_successfully"
                assert SERVICES[other]["restart"] == "no"


def test_volumes_are_declared_and_used() -> None:
    mounts = [mount.partition("}:")[0] for service in SERVICES.values() for mount in service.get("volumes", [])]
    named = {mount.split(":")[0] for mount in mounts if not mount.startswith(("$", "/", "."))}
    assert named == set(COMPOSE["volumes"])


def test_settings_exist_and_hosts_are_services() -> None:
    known = {f"FEATUREWATCH_{name.upper()}" for name in Settings.model_fields}
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if variable.startswith("FEATUREWATCH_"):
                assert variable in known, f"{name} sets {variable}"
            if variable.endswith("_URL") and variable != "FEATUREWATCH_LABEL_URL":  # which leads out of here
                host = make_url(interpolate(value, _Anything())).host
                assert host in SERVICES, f"{name}: {variable} names the host {host}"


class _Anything(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return "x"

    def get(self, name: str, default: Any = None) -> Any:
        return self[name]


def test_variables_are_explained_and_secrets_have_no_defaults() -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    code = "\n".join(line for line in TEXT.splitlines() if not line.lstrip().startswith("#"))
    uses = [match.groups() for match in VARIABLE.finditer(code) if match.group(1)]
    assert {name for name, _, _ in uses} == set(re.findall(r"^#?([A-Z_]+)=", example, re.M))
    for name, kind, rest in uses:
        if re.search("PASSWORD|SECRET_KEY$|MODELS", name):
            assert kind == "?", f"{name} must be required"
            assert re.search(rf"^{name}=$", example, re.M), f"{name} has a value in .env.example"
        else:
            assert kind == "-", f"{name} needs a default"
            assert re.search(rf"^#{name}={re.escape(rest)}$", example, re.M), (
                f"{name}: .env.example has another default"
            )


def test_services_are_confined() -> None:
    for name, service in SERVICES.items():
        assert service["user"] not in ("root", "0", "0:0"), name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"cpus", "memory", "pids"} <= set(service["deploy"]["resources"]["limits"]), name
        assert "healthcheck" in service or service["restart"] == "no", name
        assert not service.get("privileged"), name
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published == ["${API_BIND:-127.0.0.1}:${API_PORT:-8000}:8000"], "only the API, and on loopback by default"


def test_commands_name_what_exists() -> None:
    scripts = {script.name for script in entry_points(group="console_scripts")}
    for name, service in OURS.items():
        program, *arguments = service["command"]
        assert program in scripts, f"{name} starts {program}"
        for target in (a for a in arguments if re.fullmatch(r"(service|workers)[.\w]*(:\w+)?", a)):
            module, _, attribute = target.partition(":")
            assert hasattr(import_module(module), attribute or "__name__")
        if "-Q" in arguments:
            from featurewatch.workers.app import app  # noqa: PLC0415

            queues = {route["queue"] for route in app.conf.task_routes.values()} | set(QUEUES)
            assert set(arguments[arguments.index("-Q") + 1].split(",")) <= queues
    for target in ("api", "worker"):
        command = DOCKERFILE.partition(f" AS {target}\n")[2].partition("\nCMD ")[2].partition("\n")[0]
        in_file = SERVICES[target]["command"]
        assert yaml.safe_load(command) == in_file[: len(yaml.safe_load(command))], "Dockerfile and compose file differ"


# The commands at work


class Deployment:
    """The services of the file as local processes, in a folder of this test."""

    def __init__(self, folder: Path, database_url: str, broker_url: str) -> None:
        self.folder, self.port = folder, free_port()
        values = {
            "POSTGRES_PASSWORD": "x",
            "REDIS_PASSWORD": "x",
            "SECRET_KEY": "a secret of this test",
            "MODELS_DIR": str(folder / "models"),
        }
        self.values = values
        # What differs from the containers: where the servers are, the folders, and the port.
        self.put = {"FEATUREWATCH_DATABASE_URL": database_url, "FEATUREWATCH_BROKER_URL": broker_url}
        self.folders = {"/data": str(folder / "data"), "/models": str(folder / "models")}

    def environment(self, name: str) -> dict[str, str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("FEATUREWATCH_")}
        for key, value in SERVICES[name]["environment"].items():
            text = interpolate(value, self.values)
            for inside, outside in self.folders.items():
                text = text.replace(inside, outside)
            clean[key] = text
        return clean | self.put | {"PATH": f"{BIN}:{os.environ['PATH']}"}

    def words(self, words: list[str]) -> list[str]:
        return [interpolate(word, self.values).replace("8000", str(self.port)) for word in words]

    def run(self, name: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words(command),
            env=self.environment(name),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def healthy(self, name: str) -> bool:
        kind, *words = SERVICES[name]["healthcheck"]["test"]
        return self.run(name, words if kind == "CMD" else ["sh", "-c", *words]).returncode == 0

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-3000:]

    @contextmanager
    def up(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                self.words(SERVICES[name]["command"]),
                env=self.environment(name),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                umask=0o022,  # that of a container
            )
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            # uvicorn ends by the signal that it was sent.
            assert process.wait(timeout=60) in (0, -signal.SIGTERM), self.log(name)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture
def deployment(postgres: Postgres, valkey: Valkey, tmp_path: Path) -> Iterator[Deployment]:
    valkey.flush()
    name = postgres.create()  # empty: the service `migrate` makes the schema
    yield Deployment(tmp_path, postgres.database_url(name), valkey.url)
    postgres.drop(name)


def test_from_registration_to_verdicts(deployment: Deployment) -> None:
    shape = {"n_positions": 8000, "width": 64, "n_planted": 32, "n_suppressed": 3, "n_removed": 4, "lowest_rate": 0.03}
    lineage = make_lineage(3, n_checkpoints=2, n_born=0, **shape)
    for checkpoint in (1, 2):
        write_checkpoint(lineage, checkpoint, deployment.folder / "models" / f"v{checkpoint}")

    migrated = deployment.run("migrate", SERVICES["migrate"]["command"])
    assert migrated.returncode == 0, migrated.stderr
    with ExitStack() as stack:
        for name in ("api", "worker", "beat"):
            stack.enter_context(deployment.up(name))
        url = f"http://127.0.0.1:{deployment.port}"
        assert wait_until(lambda: _ready(url), 60), deployment.log("api")
        made = deployment.run("api", ["featurewatch", "key", "create", "ci", "--scope", "write", "--json"])
        assert made.returncode == 0, made.stderr
        with Client(url, yaml.safe_load(made.stdout)["key"]) as client:
            _judge(client, deployment)
        for name in ("api", "worker", "beat"):
            assert wait_until(lambda name=name: deployment.healthy(name), 60), f"{name}: {deployment.log(name)}"
    made = [deployment.folder / "data", *(deployment.folder / "data").rglob("*")]
    assert [path for path in made if path.stat().st_mode & 0o077] == [], "what workers and API write is theirs alone"
    assert "Traceback" not in deployment.log("worker") + deployment.log("beat") + deployment.log("api")


def _judge(client: Client, deployment: Deployment) -> None:
    options = {"n_features": 40, "k": 2, "steps": 600, "batch_size": 256, "learning_rate": 0.003}
    client.create_family("planted", ["resid_post.1"], crosscoder=options)
    for name, parent in (("v1", None), ("v2", "v1")):
        uri = f"activations+file://{deployment.folder}/models/{name}"
        run = client.register("planted", name=name, uri=uri, parent=parent)["run"]
        ended = client.wait(run["id"], timeout=180, interval=0.2)
        assert ended["state"] == "succeeded", f"{ended['error']}\n{deployment.log('worker')}"
        assert ended["attempt"] == 1
    rows = list(client.features("planted", checkpoint="v2"))
    assert len(rows) == client.family("planted")["n_features"]
    absent = [row for row in rows if row["status"] == "absent"]
    assert 2 <= len(absent) <= 4, "four planted features were removed in v2"
    for row in absent:
        low, high = row["projection_ratio_ci"] or (None, None)
        assert low is not None
        assert high is not None
        assert low <= (row["projection_ratio"] or 0) <= high < 0.1
    assert sum(row["status"] == "present" for row in rows) >= 28
    assert client.report("planted", "v2")["counts"]["absent"] == len(absent)


def _ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx2.TransportError:
        time.sleep(0.2)
        return False


def test_the_redis_command_asks_for_the_password(deployment: Deployment) -> None:
    """The command of `redis`, on a port of its own, with the private server's program."""
    folder = deployment.folder / "bin"
    folder.mkdir()
    (folder / "valkey-server").symlink_to(valkey_binary())
    port = free_port()
    words = deployment.words(SERVICES["redis"]["command"])
    words[-1] += f" --port {port} --bind 127.0.0.1"
    environment = deployment.environment("redis") | {"REDIS_PASSWORD": "pass", "PATH": f"{folder}:{os.environ['PATH']}"}
    with (deployment.folder / "redis.log").open("wb") as log:
        server = subprocess.Popen(words, env=environment, cwd=folder, stdout=log, stderr=log)
    try:
        good, bad = (redis.Redis.from_url(f"redis://{user}127.0.0.1:{port}/0") for user in (":pass@", ""))
        assert wait_until(lambda: _pings(good), 20), deployment.log("redis")
        with pytest.raises(redis.AuthenticationError):
            bad.ping()
        assert good.config_get("save") == {"save": ""}
        good.close()
        bad.close()
    finally:
        server.terminate()
        server.wait(timeout=20)


def _pings(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        time.sleep(0.1)
        return False
