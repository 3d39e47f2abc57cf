"""`featurewatch up`, `demo`, `key` and `audit`: running the service, and access to it."""

import importlib.util
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from featurewatch.service.cli import base, complete
from featurewatch.service.cli.command import Table, calls, command, fields
from featurewatch.service.client import Client
from featurewatch.service.config import Settings
from featurewatch.service.kit import extras
from featurewatch.service.kit.clock import utcnow

app = typer.Typer()
key_app = typer.Typer(name="key", help="API keys: create, list, revoke.", no_args_is_help=True)
app.add_typer(key_app)
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

DataDir = Annotated[Path | None, typer.Option(help="Data folder of the installation. (FEATUREWATCH_DATA_DIR)")]
Actor = Annotated[str | None, typer.Option(help="Only writes with this key, key_...", autocompletion=complete.keys)]


@app.command()
def up(
    host: Annotated[
        str, typer.Option(help="Address to listen on. Addresses other than loopback need API keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for a free one.", min=0, max=65535)] = 8000,
    data_dir: DataDir = None,
    root: Annotated[
        list[str] | None,
        typer.Option(help="Folder with checkpoints or corpora. May be repeated. (FEATUREWATCH_ROOTS)"),
    ] = None,
    worker: Annotated[bool, typer.Option(help="Also start a worker.")] = True,
    processes: Annotated[
        int, typer.Option(help="Number of API processes. Use more for many concurrent clients.", min=1)
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the URL as a line of JSON.")] = False,
) -> None:
    """Run everything on this machine: API, worker and sweeps. No other server is needed."""
    overrides: dict[str, Any] = {}
    if data_dir is not None:
        overrides["data_dir"] = data_dir
    if root:
        overrides["roots"] = ":".join(str(Path(folder).expanduser().resolve()) for folder in root)
    if worker:
        _need_worker_packages()
    settings = Settings(**overrides)
    _local().serve(settings, host=host, port=port, worker=worker, processes=processes, as_json=as_json)


@app.command(context_settings=PASSED_ON)
def demo(context: typer.Context) -> None:
    """Compare three releases of a real model, one of them edited. `demo --help` lists its options."""
    _need_worker_packages()
    # The user's own arguments, passed to the user's own Python.
    process = subprocess.run([sys.executable, "-m", "featurewatch.workers.demo", *context.args], check=False)  # noqa: S603
    raise typer.Exit(process.returncode)


@command(key_app, "create", fields("id", "name", "scopes", "expires_at", "key"))
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: Annotated[list[str] | None, typer.Option(help="read, write or admin. May be repeated.")] = None,
    days: Annotated[float | None, typer.Option(help="Days until it expires; default: never.", min=0)] = None,
) -> dict[str, Any]:
    """Create an API key. It is shown only once.

    Without --url or FEATUREWATCH_URL, the key is created in the configured database: run this on the server.
    """
    scopes = scope or ["read"]
    expires_at = None if days is None else utcnow() + timedelta(days=days)
    if base.target.named:
        with base.connect() as client:
            return dict(client.create_key(name, scopes, expires_at=expires_at))
    return _local().create_key(name, scopes, expires_at)


KEYS = Table(
    ("id", "name", "starts_with", "scopes", "last_used", "expires", "revoked"),
    {
        "starts_with": "prefix",
        "last_used": lambda row: base.moment(row["last_used_at"]),
        "expires": lambda row: base.moment(row["expires_at"]),
        "revoked": lambda row: base.moment(row["revoked_at"]),
    },
    empty="No keys yet. Create one with `featurewatch key create`.",
    wraps=("name",),
    optional=("revoked", "last_used", "starts_with"),
)


@command(key_app, "list", KEYS)
def list_keys() -> list[Any]:
    """List the API keys, without their secrets."""
    if base.target.named:
        with base.connect() as client:
            return list(client.keys())
    return _local().list_keys()


@command(key_app, "revoke", lambda document: base.say(f"Revoked {document['revoked']}."))
def revoke_key(
    key: Annotated[str, typer.Argument(help="Id of the key, key_...", autocompletion=complete.keys)],
) -> dict[str, str]:
    """Revoke an API key."""
    if base.target.named:
        with base.connect() as client:
            client.revoke_key(key)
    else:
        _local().revoke_key(key)
    return {"revoked": key}


def _show_rotation(result: dict[str, Any]) -> None:
    base.say(f"Re-encrypted {result['changed']} of {result['encrypted']} stored secrets with {result['key']}.")
    if result["key"] != "FEATUREWATCH_SECRET_KEY":
        base.say("The old key is gone. To restore an older backup, use the secret.key that was copied with it.")
    elif result["old_keys"]:
        base.say(
            "Once every process runs with the new key and this command changes nothing more, remove "
            "FEATUREWATCH_SECRET_KEY_OLD. Users who signed in to the pages before then must sign in again."
        )
    else:
        base.say(
            "There was no old key. To rotate, set FEATUREWATCH_SECRET_KEY to a new key and FEATUREWATCH_SECRET_KEY_OLD "
            "to the current one, restart every process, and run this command again."
        )


@command(key_app, "rotate-secret", _show_rotation)
def rotate_secret() -> dict[str, Any]:
    """Re-encrypt all stored secrets with the newest secret key. Run it on the server while the service is running.

    A key in the data folder is replaced by a new one. For a key in the environment, set FEATUREWATCH_SECRET_KEY to the
    new key and FEATUREWATCH_SECRET_KEY_OLD to the old one for every process, then run this.
    """
    return _local().rotate_secret()


AUDIT = Table(
    ("at", "actor", "method", "path", "status", "request"),
    {"at": lambda row: base.moment(row["at"]), "request": "request_id"},
    empty="No writes yet.",
    wraps=("path", "at"),
    optional=("request", "status"),
)
calls(app, "audit", Client.audit, AUDIT, actor=Actor)


def _local() -> ModuleType:
    """The whole service, imported only when needed so that other commands start quickly."""
    from featurewatch.service.cli.host import local  # noqa: PLC0415

    return local


def _need_worker_packages() -> None:
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("featurewatch.workers") is None:
        raise base.UsageError(
            f"workers need torch and transformers: {extras.install('worker')} (or run `up --no-worker`)"
        )
