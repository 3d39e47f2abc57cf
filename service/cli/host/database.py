"""`featurewatch db`: the database and the artifacts of this installation. Runs on the server."""

from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from featurewatch.service.cli import base
from featurewatch.service.cli.base import AsJson
from featurewatch.service.cli.command import Table, command, fields

app = typer.Typer(name="db", help="The database and its artifacts: upgrade, check, back up.", no_args_is_help=True)


@command(app, "upgrade", lambda _: base.say("The database schema is up to date."))
def upgrade() -> dict[str, bool]:
    """Upgrade the database to this version's schema. Safe to run at every start, and by several processes at once."""
    _local().upgrade()
    return {"upgraded": True}


TABLES = Table(("table", "rows"), {"table": lambda row: row[0], "rows": lambda row: row[1]})


def _show_check(result: dict[str, Any]) -> None:
    base.show_fields(
        [
            ("schema", result["schema"]),
            ("engine", result["engine"]),
            ("database", base.size(result["bytes"])),
            ("artifacts", base.size(result["artifact_bytes"])),
            ("unreferenced", f"{result['unreferenced']:,} artifacts, {base.size(result['unreferenced_bytes'])}"),
        ]
    )
    if "verified" in result:
        old = f"; {result['adopted']:,} older ones now have a digest" if result["adopted"] else ""
        text = f"{result['verified']:,} artifacts{old}, {base.size(result['verified_bytes'])} read"
        base.show_fields([("verified", text)])
    base.out.print()
    TABLES(result["rows"].items())
    broken = [("missing", "it is not in the store", row) for row in result["missing"]]
    broken += [("damaged", row["reason"], row) for row in result["damaged"]]
    for word, reason, row in broken:
        base.out.print()
        needed_by = ", ".join(row["depends"]) or "nothing"
        base.show_fields(
            [(word, row["artifact"]), ("reason", reason), ("needed by", needed_by), ("to rebuild", row["rebuild"])]
        )
    for row in result["put_aside"]:
        base.say(
            f"a damaged copy of {row['artifact']} ({base.size(row['bytes'])}) was set aside; it is removed once the "
            "artifact has been rebuilt or is no longer needed"
        )
    _show_deletions(result["deletions"])
    if result["orphans"]:
        base.say(f"rows without their parents: {', '.join(result['orphans'])}; restore a backup")


def _show_deletions(deletions: dict[str, Any]) -> None:
    if deletions["under_way"]:
        base.say(
            f"families being deleted: {len(deletions['under_way'])}; workers will finish this, or run "
            "`featurewatch db vacuum`"
        )
    if deletions["left_behind"]:
        base.say(f"left in the artifact store by deleted families: {', '.join(deletions['left_behind'])}")
    if deletions["unknown"]:
        base.say(f"in the artifact store, of families unknown to the database: {', '.join(deletions['unknown'])}")


def _fail_if_broken(result: dict[str, Any]) -> None:
    if result["missing"] or result["damaged"] or result["orphans"] or result["deletions"]["left_behind"]:
        raise typer.Exit(base.FAILED)


@command(app, "check", _show_check, then=_fail_if_broken)
def check(
    deep: Annotated[bool, typer.Option("--deep", help="Read every artifact and compare its SHA-256.")] = False,
) -> dict[str, Any]:
    """Check that the database has this version's schema, and that every artifact it refers to exists with the right
    size. Exit code 1 if something is missing or damaged, 2 if the schema is of another version."""
    return _local().check(deep=deep)


COPIED = Table(
    ("table", "rows", "of_arrays"), {"of_arrays": lambda row: base.size(row["bytes"]) if row["bytes"] else None}
)


def _show_copied(rows: list[dict[str, Any]]) -> None:
    COPIED(rows)
    base.say(f"Copied and verified {sum(row['rows'] for row in rows):,} rows.")


@command(app, "copy", _show_copied)
def copy(
    from_: Annotated[str, typer.Argument(metavar="FROM", help="The other database: a SQLite file or a URL.")],
) -> list[dict[str, Any]]:
    """Copy another database into the configured one, which must be empty: from SQLite to Postgres, or back. Every row
    is read back and compared. Artifacts stay where they are. Stop the service first."""
    return _local().copy(from_)


REMOVALS = Table(
    ("artifact", "size", ""),
    {"artifact": lambda row: row[0], "size": lambda row: base.size(row[1]), "": lambda row: row[2]},
    empty="Nothing to remove.",
)


def _show_vacuum(result: dict[str, Any]) -> None:
    verb = "would be removed" if result["dry_run"] else "removed"
    rows = [(name, size, verb) for name, size in result["removed"].items()]
    REMOVALS([*rows, *((name, size, "waits") for name, size in result["waiting"].items())])
    base.say(
        f"{base.size(sum(result['removed'].values()))} {verb}, {base.size(sum(result['waiting'].values()))} later; "
        f"database size before {base.size(result['bytes_before'])}, now {base.size(result['bytes'])}"
    )
    if result["released"]:
        base.say(f"activations no longer kept: {', '.join(result['released'])}")
    if result["busy"]:
        base.say(f"skipped, because a worker is running a job: {', '.join(result['busy'])}")


@app.command("vacuum")
def vacuum(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what the retention policy no longer keeps, and compact a SQLite database. Sweeps already do the former
    every hour. Unreferenced artifacts are kept for FEATUREWATCH_VACUUM_HOURS first."""
    result = _local().vacuum(dry_run=dry_run)
    base.show_json(result) if as_json else _show_vacuum(result | {"dry_run": dry_run})


@command(app, "backup", fields())
def backup(file: Annotated[Path, typer.Argument(help="File to write. Must not exist.")]) -> dict[str, Any]:
    """Copy the SQLite database while the service is running. Copy the artifacts after it, not before."""
    return _local().backup(file)


@command(app, "restore", lambda _: base.say("Restored. Check the artifacts with `featurewatch db check`."))
def restore(
    file: Annotated[Path, typer.Argument(help="A file written by `backup`.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace a database that contains data.")] = False,
) -> dict[str, str]:
    """Restore a backup of a SQLite database and upgrade it to this version's schema. Stop the service first."""
    _local().restore(file, replace=replace)
    return {"restored": str(file)}


def _local() -> ModuleType:
    """The whole service, imported only when needed so that other commands start quickly."""
    from featurewatch.service.cli.host import local_database  # noqa: PLC0415
    from featurewatch.service.config import Settings  # noqa: PLC0415
    from featurewatch.service.kit.private import keep_private  # noqa: PLC0415

    keep_private(Settings())
    return local_database
