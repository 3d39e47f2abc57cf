"""`featurewatch up`, `demo`, `key`, `audit`: what runs on the server itself, and who may use it."""

import importlib.util
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from featurewatch.service.cli import base, complete
from featurewatch.service.cli.base import AsJson
from featurewatch.service.config import Settings
from featurewatch.service.kit import extras
from featurewatch.service.kit.clock import utcnow

key_app = typer.Typer(help="API keys.", no_args_is_help=True)
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

DataDir = Annotated[Path | None, typer.Option(help="Folder of the installation. (FEATUREWATCH_DATA_DIR)")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the main one."""
    app.command()(up)
    app.command(context_settings=PASSED_ON)(demo)
    app.add_typer(key_app, name="key")
    app.command()(audit)


def up(
    host: Annotated[
        str, typer.Option(help="Address to listen on. Any but a loopback one needs API keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: a free one.", min=0, max=65535)] = 8000,
    data_dir: DataDir = None,
    root: Annotated[
        list[str] | None,
        typer.Option(help="Folder that checkpoints and corpora may be read from; repeatable. (FEATUREWATCH_ROOTS)"),
    ] = None,
    worker: Annotated[bool, typer.Option(help="Whether to start a worker too.")] = True,
    processes: Annotated[
        int, typer.Option(help="Processes that answer requests. More are of use where many ask at once.", min=1)
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Say where it listens as a line of JSON.")] = False,
) -> None:
    """Run everything on this machine: API, worker and sweeps. Needs no other server."""
    overrides: dict[str, Any] = {}
    if data_dir is not None:
        overrides["data_dir"] = data_dir
    if root:
        overrides["roots"] = ":".join(str(Path(folder).expanduser().resolve()) for folder in root)
    if worker:
        _need_worker_packages()
    settings = Settings(**overrides)
    _local().serve(settings, host=host, port=port, worker=worker, processes=processes, as_json=as_json)


def demo(context: typer.Context) -> None:
    """Three releases of a real model, one tampered with: what featurewatch says. `demo --help` lists its options."""
    _need_worker_packages()
    # The caller's own arguments, to the caller's own Python.
    done = subprocess.run([sys.executable, "-m", "featurewatch.workers.demo", *context.args], check=False)  # noqa: S603
    raise typer.Exit(done.returncode)


@key_app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What it is for.")],
    scope: Annotated[list[str] | None, typer.Option(help="read, write or admin. May be repeated.")] = None,
    days: Annotated[float | None, typer.Option(help="For so long; default: until it is revoked.", min=0)] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key. It is shown once.

    Without --url or FEATUREWATCH_URL it is made in the configured database itself: run it on the server.
    """
    scopes = scope or ["read"]
    expires_at = None if days is None else utcnow() + timedelta(days=days)
    made: dict[str, Any]
    if base.target().named:
        with base.connect() as client:
            made = dict(client.create_key(name, scopes, expires_at=expires_at))
    else:
        made = _local().create_key(name, scopes, expires_at)
    base.show_json(made) if as_json else base.show_fields(
        (part, made[part]) for part in ("id", "name", "scopes", "expires_at", "key")
    )


@key_app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List the API keys, without their secrets."""
    if base.target().named:
        with base.connect() as client:
            rows: list[Any] = list(client.keys())
    else:
        rows = _local().list_keys()
    if as_json:
        return base.show_json(rows)
    columns = [
        ("ID", lambda row: row["id"]),
        ("NAME", lambda row: row["name"]),
        ("STARTS WITH", lambda row: row["prefix"]),
        ("SCOPES", lambda row: row["scopes"]),
        ("LAST USED", lambda row: base.moment(row["last_used_at"])),
        ("EXPIRES", lambda row: base.moment(row["expires_at"])),
        ("REVOKED", lambda row: base.moment(row["revoked_at"])),
    ]
    return base.show_rows(
        rows,
        columns,
        empty="No key yet; `featurewatch key create` makes one.",
        wraps=("NAME",),
        optional=("REVOKED", "LAST USED", "STARTS WITH"),
    )


@key_app.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(help="Id of the key, key_...", autocompletion=complete.keys)],
    as_json: AsJson = False,
) -> None:
    """End an API key."""
    if base.target().named:
        with base.connect() as client:
            client.revoke_key(key)
    else:
        _local().revoke_key(key)
    base.show_json({"revoked": key}) if as_json else base.say(f"{key} is revoked")


@key_app.command("rotate-secret")
def rotate_secret(as_json: AsJson = False) -> None:
    """Encrypt everything that is stored with the newest secret key. Run it on the server, while the service runs.

    A key in the data folder is replaced by a new one. A key in the environment: name the new one in
    FEATUREWATCH_SECRET_KEY and the one before in FEATUREWATCH_SECRET_KEY_OLD, for every process, then run this.
    """
    done = _local().rotate_secret()
    if as_json:
        return base.show_json(done)
    base.say(f"{done['changed']} of {done['encrypted']} stored secrets were encrypted anew with {done['key']}")
    if done["key"] != "FEATUREWATCH_SECRET_KEY":
        return base.say("The key before is gone: a backup from before needs the secret.key that was copied with it.")
    if done["old_keys"]:
        return base.say(
            "When every process runs with the new key, and this command changes nothing any more, remove "
            "FEATUREWATCH_SECRET_KEY_OLD. Whoever signed in to the pages before then signs in again."
        )
    return base.say(
        "There was no earlier key. To rotate, name a new key in FEATUREWATCH_SECRET_KEY and this one in "
        "FEATUREWATCH_SECRET_KEY_OLD, restart every process, and run this command again."
    )


def audit(
    actor: Annotated[
        str | None, typer.Option(help="Only what this key wrote, key_...", autocompletion=complete.keys)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Who wrote what, newest first. Needs a key with the scope admin."""
    with base.connect() as client:
        rows = list(client.audit(actor=actor))
    if as_json:
        return base.show_json(rows)
    columns = [
        ("AT", lambda row: base.moment(row["at"])),
        ("ACTOR", lambda row: row["actor"]),
        ("METHOD", lambda row: row["method"]),
        ("PATH", lambda row: row["path"]),
        ("STATUS", lambda row: row["status"]),
        ("REQUEST", lambda row: row["request_id"]),
    ]
    return base.show_rows(
        rows, columns, empty="Nothing was written yet.", wraps=("PATH", "AT"), optional=("REQUEST", "STATUS")
    )


def _local() -> ModuleType:
    """The whole service; imported when it is needed, so that the other commands start quickly."""
    from featurewatch.service.cli.host import local  # noqa: PLC0415

    return local


def _need_worker_packages() -> None:
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("featurewatch.workers") is None:
        raise base.UsageError(
            f"workers need torch and transformers: {extras.install('worker')} (or use `up --no-worker`)"
        )
