"""`featurewatch db`: the database and the artifacts of this installation, on the server itself."""

from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from featurewatch.service.cli import base
from featurewatch.service.cli.base import AsJson

db_app = typer.Typer(help="The database, and the artifacts that it refers to.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the main one."""
    app.add_typer(db_app, name="db")


@db_app.command("upgrade")
def upgrade(as_json: AsJson = False) -> None:
    """Bring the database to this version's schema. Safe to run at each start: of several, one does it."""
    _local().upgrade()
    base.show_json({"upgraded": True}) if as_json else base.say("the database's schema is up to date")


@db_app.command("check")
def check(
    deep: Annotated[bool, typer.Option("--deep", help="Read every artifact and compare its SHA-256.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check that the database has this version's schema, and that the artifacts it refers to are there and have the
    right size. Exits with 1 if something is missing or damaged, with 2 if the schema is another one."""
    found = _local().check(deep=deep)
    if as_json:
        base.show_json(found)
    else:
        _show_check(found)
    if found["missing"] or found["damaged"] or found["orphans"] or found["deletions"]["left_behind"]:
        raise typer.Exit(base.FAILED)


def _show_check(found: dict[str, Any]) -> None:
    base.show_fields(
        [
            ("schema", found["schema"]),
            ("engine", found["engine"]),
            ("database", base.size(found["bytes"])),
            ("artifacts", base.size(found["artifact_bytes"])),
            ("unreferenced", f"{found['unreferenced']:,} artifacts, {base.size(found['unreferenced_bytes'])}"),
        ]
    )
    if "verified" in found:
        old = f"; {found['adopted']:,} older ones now have a digest" if found["adopted"] else ""
        base.show_fields(
            [("verified", f"{found['verified']:,} artifacts{old}, {base.size(found['verified_bytes'])} read")]
        )
    base.out.print()
    base.show_rows(list(found["rows"].items()), [("TABLE", lambda row: row[0]), ("ROWS", lambda row: row[1])], empty="")
    broken = [("missing", "it is not in the store", row) for row in found["missing"]]
    broken += [("damaged", row["reason"], row) for row in found["damaged"]]
    for word, reason, row in broken:
        base.out.print()
        base.show_fields(
            [
                (word, row["artifact"]),
                ("reason", reason),
                ("needed by", ", ".join(row["depends"]) or "nothing"),
                ("to rebuild", row["rebuild"]),
            ]
        )
    for row in found["put_aside"]:
        base.say(
            f"a damaged copy of {row['artifact']} ({base.size(row['bytes'])}) was put aside; it is removed as soon as "
            "the artifact is there again, or nothing needs it any more"
        )
    deletions = found["deletions"]
    if deletions["under_way"]:
        base.say(
            f"families that are being deleted: {len(deletions['under_way'])}; workers go on with it, or "
            "`featurewatch db vacuum`"
        )
    if deletions["left_behind"]:
        base.say(f"in the artifact store although their family was deleted: {', '.join(deletions['left_behind'])}")
    if deletions["unknown"]:
        base.say(
            f"in the artifact store, of families that the database does not have: {', '.join(deletions['unknown'])}"
        )
    if found["orphans"]:
        base.say(f"rows without their parents: {', '.join(found['orphans'])}; restore a backup")


@db_app.command("copy")
def copy(
    from_: Annotated[str, typer.Argument(metavar="FROM", help="The other database: a SQLite file, or a URL.")],
    as_json: AsJson = False,
) -> None:
    """Copy another database into the configured one, which must be empty: from SQLite to Postgres, or back. Every row
    is read back and compared. Artifacts stay where they are. Stop the service first."""
    found = _local().copy(from_)
    if as_json:
        return base.show_json(found)
    columns = [
        ("TABLE", lambda row: row["table"]),
        ("ROWS", lambda row: row["rows"]),
        ("OF ARRAYS", lambda row: base.size(row["bytes"]) if row["bytes"] else None),
    ]
    base.show_rows(found, columns, empty="")
    base.say(f"{sum(row['rows'] for row in found):,} rows were copied, and are the same in both")
    return None


@db_app.command("vacuum")
def vacuum(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what the retention policy keeps no longer, and give the space of a SQLite file back. Sweeps do the first
    by themselves, hourly. What nothing refers to waits for FEATUREWATCH_VACUUM_HOURS first."""
    found = _local().vacuum(dry_run=dry_run)
    if as_json:
        return base.show_json(found)
    verb = "would be removed" if dry_run else "removed"
    columns = [("ARTIFACT", lambda row: row[0]), ("SIZE", lambda row: base.size(row[1])), ("", lambda row: row[2])]
    rows = [(name, size, verb) for name, size in found["removed"].items()]
    rows += [(name, size, "waits") for name, size in found["waiting"].items()]
    base.show_rows(rows, columns, empty="Nothing to remove.")
    base.say(
        f"{base.size(sum(found['removed'].values()))} {verb}, {base.size(sum(found['waiting'].values()))} later; "
        f"the database had {base.size(found['bytes_before'])}, now {base.size(found['bytes'])}"
    )
    if found["released"]:
        base.say(f"activations kept no longer: {', '.join(found['released'])}")
    if found["busy"]:
        base.say(f"left alone, since a worker has a run of it: {', '.join(found['busy'])}")
    return None


@db_app.command("backup")
def backup(
    file: Annotated[Path, typer.Argument(help="File to write; must not be there.")], as_json: AsJson = False
) -> None:
    """Copy the SQLite database while the service runs. Copy the artifacts after it, not before."""
    made = _local().backup(file)
    base.show_json(made) if as_json else base.show_fields(made.items())


@db_app.command("restore")
def restore(
    file: Annotated[Path, typer.Argument(help="What `backup` wrote.")],
    replace: Annotated[bool, typer.Option("--replace", help="Although the database holds rows: they go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put a backup of a SQLite database in place, and bring it to this version's schema. Stop the service first."""
    _local().restore(file, replace=replace)
    if as_json:
        return base.show_json({"restored": str(file)})
    return base.say("the backup is in place; `featurewatch db check` says whether all artifacts are")


def _local() -> ModuleType:
    """The whole service; imported when it is needed, so that the other commands start quickly."""
    from featurewatch.service.cli.host import local_database  # noqa: PLC0415
    from featurewatch.service.config import Settings  # noqa: PLC0415
    from featurewatch.service.kit.private import keep_private  # noqa: PLC0415

    keep_private(Settings())
    return local_database
