"""Retention on real runs: activations and leftovers go by the policy, and what needs them copes and says so."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.planted_data import make_lineage
from featurewatch.service.client import ApiError
from featurewatch.service.models import Code, Source
from tests.cli.live import within
from tests.e2e.parts import HOOK_POINT, Service, environment, rows_of, write_lineage
from tests.services import Postgres, postgres_binaries

OPTIONS = {"n_features": 40, "k": 2, "steps": 400, "batch_size": 256, "learning_rate": 0.003}
SHAPE = {
    "n_checkpoints": 5, "n_positions": 4000, "width": 32, "n_planted": 24,
    "n_suppressed": 2, "n_removed": 2, "n_born": 0, "lowest_rate": 0.03,
}  # fmt: skip
POLICY = {"keep_activations": 1, "vacuum_hours": 1e-9, "lease_seconds": 3.0}
"""Nothing waits: what is noted once is due the next time."""


def command(service: Service, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    url = str(settings.pop("database_url", service.database_url))
    return within(*arguments, env=environment(service.folder, url, **(POLICY | settings)))


def run(service: Service, *arguments: str, **settings: object) -> Any:
    done = command(service, *arguments, "--json", **settings)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def running(module_database: tuple[Path, str]) -> Iterator[Service]:
    with Service(*module_database, **POLICY) as service:
        yield service


@pytest.fixture(scope="module")
def uris(running: Service) -> list[str]:
    return write_lineage(make_lineage(5, **SHAPE), running.folder / "planted")


@pytest.fixture(scope="module")
def vacuumed(running: Service, uris: list[str]) -> dict[str, Any]:
    """v1 (fitted) to v3, then the policy twice: the first time notes what the second one removes."""
    running.client.create_family("toy", [HOOK_POINT], crosscoder=OPTIONS, policy={"anchors": 1})
    for name, uri in zip(("v1", "v2", "v3"), uris, strict=False):
        running.judge("toy", name, uri)
    first = run(running, "db", "vacuum")
    assert first["released"] == ["v2"] and not first["removed"]
    said = run(running, "db", "vacuum", "--dry-run")
    folder = running.folder / "data" / "artifacts"
    assert all((folder / name).exists() for name in said["removed"]), "a dry run removes nothing"
    second = run(running, "db", "vacuum")
    assert second["removed"] == said["removed"]
    assert not any((folder / name).exists() for name in second["removed"])
    return second


def test_the_anchor_and_the_newest_keep_their_activations(running: Service, vacuumed: dict[str, Any]) -> None:
    kept = {row["name"]: row["activations_kept"] for row in running.client.checkpoints("toy")}
    assert kept == {"v1": True, "v2": False, "v3": True}
    kinds = {name.partition("/")[2].rpartition("-")[0] for name in vacuumed["removed"]}
    assert kinds == {"activations", "measures", "promoted"} or kinds == {"activations", "measures"}


def test_own_codes_stay_when_activations_go(running: Service, vacuumed: dict[str, Any]) -> None:
    rows = rows_of(running.database_url, Code)
    names = [row[column] for row in rows for column in ("own_code", "rows")]
    assert len(rows) == 3 and all(names)
    assert all((running.folder / "data" / "artifacts" / name).exists() for name in names)


def test_what_is_left_is_whole(running: Service, vacuumed: dict[str, Any]) -> None:
    found = run(running, "db", "check")
    assert (found["missing"], found["orphans"], found["unreferenced"]) == ([], [], 0)
    stored = sum(f.stat().st_size for f in (running.folder / "data" / "artifacts").rglob("*") if f.is_file())
    assert found["artifact_bytes"] == stored


def test_who_needs_what_is_gone_is_told(running: Service, uris: list[str], vacuumed: dict[str, Any]) -> None:
    for ask in (
        lambda: running.client.register("toy", name="side", uri=uris[3], parent="v2"),
        lambda: running.client.calibrate("toy", checkpoint="v2"),
    ):
        with pytest.raises(ApiError) as refused:
            ask()
        assert (refused.value.status, refused.value.code) == (409, "activations-gone")


def test_the_family_goes_on(running: Service, uris: list[str], vacuumed: dict[str, Any]) -> None:
    """Extension, re-fit on the anchor, examples, comparisons with the checkpoint whose activations are gone."""
    assert running.judge("toy", "v4", uris[3])["result"]["fit"] == "extend"
    assert running.judge("toy", "v5", uris[4], fit="refit")["result"]["fit"] == "refit: asked for"
    lost = [row["id"] for row in running.client.features("toy", checkpoint="v2", status=["absent", "suppressed"])]
    assert lost
    assert running.client.examples("toy", lost[0])
    assert list(running.client.diff("toy", "v2", "v4"))
    for _ in range(2):
        run(running, "db", "vacuum")
    kept = {row["name"] for row in running.client.checkpoints("toy") if row["activations_kept"]}
    assert kept == {"v1", "v5"}
    assert run(running, "db", "check")["missing"] == []


def test_what_is_missing_is_found(running: Service, vacuumed: dict[str, Any]) -> None:
    name = rows_of(running.database_url, Source)[0]["dictionary"]
    file = running.folder / "data" / "artifacts" / name
    away = file.with_name("away")
    shutil.move(file, away)
    try:
        done = command(running, "db", "check", "--json")
        assert done.returncode == 1
        (missing,) = json.loads(done.stdout)["missing"]
        assert (missing["artifact"], missing["column"]) == (name, "source.dictionary")
        assert missing["depends"] and "backup" in missing["rebuild"]
    finally:
        shutil.move(away, file)


def test_a_backup_then_a_copy_of_the_artifacts_is_an_installation(
    running: Service, uris: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """As docs/operations.md says, while the service works: a checkpoint is judged between the two copies."""
    running.client.create_family("saved", [HOOK_POINT], crosscoder=OPTIONS)
    running.judge("saved", "v1", uris[0])
    waiting = running.client.register("saved", name="v2", uri=uris[1])["run"]["id"]
    restored = tmp_path / "restored"
    url = _restored(running, restored, request)
    running.client.wait(waiting, timeout=120)
    shutil.copytree(running.folder / "data" / "artifacts", restored / "data" / "artifacts")
    with Service(restored, url, roots=f"{restored}:{running.folder}") as other:
        assert run(other, "db", "check")["missing"] == []
        run_id = next(one["id"] for one in other.client.runs(family="saved") if one["checkpoint"] == "v2")
        assert other.client.wait(run_id, timeout=120)["state"] == "succeeded"
        ours, theirs = (
            {row["id"]: (row["status"], row["projection_ratio"]) for row in one.client.features("saved")}
            for one in (running, other)
        )
        assert ours == theirs


def _restored(service: Service, folder: Path, request: pytest.FixtureRequest) -> str:
    """URL of the service's database, backed up and restored for an installation in a folder."""
    folder.mkdir()
    copy = folder / "backup"
    if service.database_url.startswith("sqlite"):
        url = f"sqlite:///{folder}/restored.db"
        run(service, "db", "backup", str(copy))
        done = command(service, "db", "restore", str(copy), database_url=url)
        assert done.returncode == 0, done.stderr
        return url
    server: Postgres = request.getfixturevalue("postgres")
    name = server.create()
    request.addfinalizer(lambda: server.drop(name))
    url = server.database_url(name)
    plain = [one.replace("+psycopg", "") for one in (service.database_url, url)]
    tools = postgres_binaries()
    dump = [tools / "pg_dump", "--format=custom", f"--file={copy}", plain[0]]
    restore = [tools / "pg_restore", "--no-owner", "--exit-on-error", f"--dbname={plain[1]}", copy]
    for words in (dump, restore):
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return url
