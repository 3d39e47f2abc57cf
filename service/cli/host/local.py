"""What the commands in `server` do. A separate module because it imports the whole service, which is slow."""

import ipaddress
import json
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from datetime import datetime
from typing import Any

import typer
import uvicorn
from fastapi import FastAPI
from sqlalchemy.orm import Session
from uvicorn.supervisors import Multiprocess

from featurewatch.service import migrate
from featurewatch.service.app import create_app
from featurewatch.service.auth import logic as auth
from featurewatch.service.auth import queries as auth_queries
from featurewatch.service.auth.schemas import KeyOut
from featurewatch.service.cli import base
from featurewatch.service.cli.host.child import WorkerProcess
from featurewatch.service.config import Settings
from featurewatch.service.kit.crypto import (
    KEY_FILE,
    SecretBox,
    SecretKeyError,
    drop_old_key_file,
    replace_key_file,
    uses_key_file,
)
from featurewatch.service.kit.db import Database
from featurewatch.service.kit.ids import new_id
from featurewatch.service.kit.private import keep_private
from featurewatch.service.kit.problems import ProblemError
from featurewatch.service.models import AuditEntry
from featurewatch.service.webhooks import logic as webhooks

MAX_KEYS = 10_000


class Server(uvicorn.Server):
    """A uvicorn server that returns after a signal, so that the worker can be stopped too.

    The original raises the signal again when it has stopped, which would end this process at once.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self.handle_exit) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


def serve(settings: Settings, *, host: str, port: int, worker: bool, processes: int, as_json: bool) -> None:
    """Upgrade the schema, then run the API and a worker until a signal arrives."""
    if is_loopback(host) and "require_keys" not in settings.model_fields_set:
        settings = settings.model_copy(update={"require_keys": False})
    if base.err.is_terminal and "log_json" not in settings.model_fields_set:
        settings = settings.model_copy(update={"log_json": False})
    keep_private(settings)
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    upgrade(settings)
    if not settings.require_keys and not is_loopback(host):
        raise base.UsageError(f"FEATUREWATCH_REQUIRE_KEYS is off, so {host} is refused; listen on 127.0.0.1 instead")
    if settings.require_keys and not _has_key(settings):
        raise base.UsageError(
            f"listening on {host} needs an API key, and there is none yet.\n"
            "Create one on this machine first: featurewatch key create admin --scope admin"
        )
    with _listening(host, port) as listener:
        _run(settings, listener, worker, processes, as_json)


def _run(settings: Settings, listener: socket.socket, worker: bool, processes: int, as_json: bool) -> None:
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    single = processes == 1
    if not single:
        os.environ.update(settings.environment())  # each process creates its application from them
    config = uvicorn.Config(
        create_app(settings) if single else f"{__name__}:child_app",
        factory=not single,
        workers=processes,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,  # an open event stream must not delay the shutdown
        server_header=False,
    )
    server = Server(config)
    with WorkerProcess(settings, base.say) if worker else nullcontext() as child:
        if as_json:
            document = {"url": url, "data_dir": str(settings.data_dir.resolve()), "worker": getattr(child, "pid", None)}
            typer.echo(json.dumps(document))
        else:
            keys = "needs API keys" if settings.require_keys else "no keys needed; this machine only"
            base.say(f"featurewatch is running at {url} ({keys}); the API is described at {url}/docs")
            base.say(f"Data is in {settings.data_dir.resolve()}. Press Ctrl-C to stop.")
        server.run(sockets=[listener]) if single else Multiprocess(config, sockets=[listener]).run()
    if single and not server.started:
        raise typer.Exit(base.UNAVAILABLE)


def child_app() -> FastAPI:
    """The application of one of several processes. It exits when its parent process does, for whatever reason."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watcher", daemon=True).start()
    return create_app()


def upgrade(settings: Settings) -> None:
    """Bring the database to this version's schema."""
    try:
        migrate.upgrade(settings)
    except migrate.SchemaError as error:
        raise base.UsageError(str(error)) from error


def check(settings: Settings) -> None:
    """UsageError unless the database has this version's schema."""
    try:
        migrate.check(settings)
    except migrate.SchemaError as error:
        raise base.UsageError(str(error)) from error


def create_key(name: str, scopes: Sequence[str], expires_at: datetime | None = None) -> dict[str, Any]:
    """Create a key in the configured database. Only this result contains the key itself."""
    if unknown := sorted(set(scopes) - set(auth.SCOPES)):
        raise base.UsageError(f"unknown scope {', '.join(unknown)}; choose from {', '.join(auth.SCOPES)}")
    with opened() as database, database.write() as session:
        row, key = auth.create(session, name=name, scopes=scopes, expires_at=expires_at)
        _note(session, "POST", "/v1/keys", 201)
        return KeyOut.model_validate(row).model_dump(mode="json") | {"key": key}


def list_keys() -> list[dict[str, Any]]:
    """The keys of the configured database."""
    with opened() as database, database.read() as session:
        rows = auth_queries.newest_keys(session, MAX_KEYS)
        return [KeyOut.model_validate(row).model_dump(mode="json") for row in rows]


def revoke_key(key: str) -> None:
    """Revoke a key in the configured database."""
    with opened() as database, database.write() as session:
        try:
            auth.revoke(session, key)
            _note(session, "DELETE", f"/v1/keys/{key}", 204)
        except ProblemError as error:
            raise base.UsageError(error.detail) from error


def rotate_secret() -> dict[str, Any]:
    """Re-encrypt all stored secrets with the newest secret key. A key file is replaced by a new one first."""
    settings = Settings()
    from_file = uses_key_file(settings)
    try:
        box = SecretBox(settings, create=False)
        with opened() as database, database.write() as session:
            parts = webhooks.unsealed(session, box)
            if from_file:
                replace_key_file(settings)
            changed = webhooks.reseal(session, box, parts)
            _note(session, "POST", "/key/rotate-secret", 200)
    except SecretKeyError as error:
        raise base.UsageError(str(error)) from error
    if from_file:
        drop_old_key_file(settings)  # nothing is encrypted with it any more
    return {
        "key": str(settings.data_dir / KEY_FILE) if from_file else "FEATUREWATCH_SECRET_KEY",
        "encrypted": len(parts),
        "changed": changed,
        "old_keys": len(settings.old_secret_keys),
    }


def _note(session: Session, method: str, path: str, status: int) -> None:
    """Add the audit entry that the equivalent API call would have."""
    entry = AuditEntry(actor="server", method=method, path=path, status=status, request_id=new_id("cmd"))
    session.add(entry)


@contextmanager
def opened() -> Iterator[Database]:
    """The configured database, after a check of its schema."""
    settings = Settings()
    keep_private(settings)
    if settings.resolved_database_url.startswith("sqlite"):
        upgrade(settings)  # an embedded installation may not have been started yet
    else:
        check(settings)
    with closing(Database(settings.resolved_database_url)) as database:
        yield database


def _has_key(settings: Settings) -> bool:
    with closing(Database(settings.resolved_database_url)) as database, database.read() as session:
        return any(auth.alive(row) for row in auth_queries.newest_keys(session, MAX_KEYS))


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket. Opened first, so that a port in use is reported before anything starts."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio disables Nagle's algorithm only if the protocol is named; with it, a response may wait for 40 ms.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            hint = "Is the service already running? `--port 0` chooses a free port."
            raise base.UsageError(f"cannot listen on {host} port {port}: {error.strerror}. {hint}") from error
        listener.listen(2048)  # requests before the application has started wait, and are not refused
        yield listener


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
