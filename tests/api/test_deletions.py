"""Deleting families, checkpoints, runs and signatures: nothing is left of them, and nothing else is harmed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select, text

from benchmarks.service_data import FAMILY, Filler, Lineage
from featurewatch.service.auth.logic import ANONYMOUS
from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.cli.host import local_database
from featurewatch.service.config import Settings
from featurewatch.service.deletions import families as deletions
from featurewatch.service.deletions import queries
from featurewatch.service.families import logic as families
from featurewatch.service.features import logic as features
from featurewatch.service.features.schemas import FeaturePatch
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.clock import utcnow
from featurewatch.service.kit.db import Database
from featurewatch.service.models import (
    Alert,
    Base,
    Checkpoint,
    Deletion,
    Delivery,
    DependencyGraph,
    Event,
    Family,
    Feature,
    Reading,
    Run,
    Shard,
    Signature,
    Verdict,
    Webhook,
)
from featurewatch.service.models import Lineage as LineageLink
from featurewatch.service.reports import storage
from featurewatch.service.runs import events
from featurewatch.service.runs import logic as runs
from featurewatch.service.runs.states import RunState
from featurewatch.service.verdicts import queries as verdicts
from featurewatch.workers.sweeps import Sweeper
from tests import factories
from tests.api.test_errors import check_problem
from tests.cli.live import within

URL = f"/v1/families/{FAMILY}"
SECRET = "quetzalcoatl"
"""Stands in the corpus, a label and a log."""
N_CHECKPOINTS = 6


class Marked(Filler):
    """A family whose corpus holds the secret."""

    def corpus(self, family_id: str) -> dict[str, Any]:
        positions, documents = (
            f"{family_id}/positions-{'0' * 20}.safetensors",
            f"{family_id}/documents-{'0' * 20}.jsonl",
        )
        with self.artifacts.create(documents) as path:
            path.write_text(f'{{"id": 0, "text": "the {SECRET} passage"}}\n', encoding="utf-8")
        place = {"document": np.zeros(4, np.int64), "start": np.arange(4), "end": np.arange(4) + 1}
        factories.save(self.artifacts, positions, place)
        return {"digest": "0", "count": 4, "artifact": positions, "documents": documents}

    def keep(self, family_id: str, checkpoint_id: str, place: int, outcome: Any) -> tuple[str, str]:
        code, examples = (f"{family_id}/{kind}-{place:020}.safetensors" for kind in ("code", "examples"))
        m = len(outcome.numbers)
        csr = {
            "indptr": np.array([0, m, m, m, m]), "indices": np.arange(m, dtype=np.int32),
            "values": np.ones(m, np.float32), "feature_numbers": outcome.numbers,
        }  # fmt: skip
        factories.save(self.artifacts, code, csr)
        tops = {"positions": np.zeros((m, 1), np.int64), "values": np.ones((m, 1), np.float32)}
        factories.save(self.artifacts, examples, tops)
        return code, examples


@pytest.fixture
def filled(client: TestClient, api_settings: Settings) -> Settings:
    """A family with judged checkpoints v0 to v5 in a row, and rows in every table that belongs to families."""
    filler = Marked(api_settings, Lineage(80, ["resid_post.4", "resid_post.12"], seed=1))
    filler.fill(N_CHECKPOINTS)
    with filler.database() as database, database.write() as session:
        family = families.get(session, FAMILY)
        features.patch(features.get(session, family, "F3"), FeaturePatch(label=SECRET, watched=True))
        run = session.scalars(select(Run).where(Run.kind == "onboard")).first()
        assert run is not None
        factories.log(session, run, [("info", SECRET, {"path": SECRET})])
        session.add(Shard(run_id=run.id, run_attempt=1, number=0, folder=f"{family.id}/shards-0", size=1))
        last = checkpoints.get(session, family, "v5")
        link = {"generation": 1, "old": 1, "new": 1, "kind": "carried", "score": 1.0}
        session.add(LineageLink(family_id=family.id, checkpoint_id=last.id, **link))
        graph = {"method": "relp", "hook_point": "resid_post.12", "n_positions": 1, "artifact": "", "graph": {}}
        session.add(
            DependencyGraph(
                checkpoint_id=last.id, family_id=family.id, feature=1, run_id=run.id, effect=None, rewired=None, **graph
            )
        )
        event = session.scalars(select(Event)).first()
        webhook = Webhook(
            id="whk_1", url="https://ci.example", sealed_url=b"x", event_types=[], secret=b"x", disabled_reason=None
        )
        session.add(webhook)
        session.flush()
        assert event is not None
        session.add(Delivery(webhook_id=webhook.id, event_id=event.id))
        alert = Alert(kind="watched", key="watched", rule_id=None, summary=SECRET, evidence=[])
        alert.family_id, alert.checkpoint_id = family.id, last.id
        session.add(alert)
    return api_settings


def other_family(session: Any, artifacts: ArtifactStore) -> Family:
    """A family that stays."""
    family = factories.family(session, "other")
    checkpoint = factories.checkpoint(session, family, "v1")
    feature = factories.feature(session, family, 0, checkpoint)
    factories.verdict(session, checkpoint, feature)
    factories.code(session, artifacts, family, checkpoint)
    family.n_features = 6
    return family


def sweep(settings: Settings, database: Database) -> None:
    sweeper = Sweeper(settings, database, publish=None)
    while sweeper.erase() == 0:
        pass


def rows_with(session: Any, needle: str) -> dict[str, int]:
    """Table -> how many of its rows hold a text anywhere."""
    found = {}
    for table in Base.metadata.sorted_tables:
        rows = [row for row in session.execute(select(table)) if needle in json.dumps(list(row), default=str)]
        if rows:
            found[table.name] = len(rows)
    return found


def rows_of(session: Any, family: str) -> dict[str, int]:
    """Table -> rows that belong to a family."""
    return {
        table.name: session.scalar(select(func.count()).select_from(table).where(condition))
        for table, condition in queries.owned(family)
    }


def files_with(folder: Path, needle: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and needle.encode() in path.read_bytes()]


def test_every_table_belongs_to_a_family_or_says_that_it_does_not() -> None:
    owned = {table.name for table, _ in queries.owned("fam_x")}
    named = {column.class_.__tablename__ for column in queries.NAMED_BY_ARTIFACT}
    assert owned | named | queries.OF_NO_FAMILY | {"family"} == set(Base.metadata.tables)
    assert not owned & queries.OF_NO_FAMILY


def test_nothing_is_left_of_a_family(
    client: TestClient, database: Database, artifacts: ArtifactStore, filled: Settings
) -> None:
    with database.write() as session:
        stays = other_family(session, artifacts).id
        family = families.get(session, FAMILY).id
        partial = filled.data_dir / "partial" / f"{family}-activations-x"
        partial.mkdir(parents=True)
        (partial / "part").write_text(SECRET)
    with artifacts.create(f"{family}/documents-{'1' * 20}.jsonl") as place:  # what a killed writer leaves
        place.write_text(SECRET)
        (place.parent / ".code-1.0.new").write_text(SECRET)
    with database.read() as session:
        of_other = rows_with(session, stays)
        assert 0 not in rows_of(session, family).values()
    kept = artifacts.listing(stays)
    rule = {"name": "all", "condition": {"kind": "watched"}}
    assert client.post("/v1/alert-rules", json=rule).status_code == 201
    answer = client.delete(URL)
    assert (answer.status_code, answer.content) == (204, b"")
    check_problem(client.get(URL), 404, "unknown-family")
    check_problem(client.delete(URL), 404, "unknown-family")
    check_problem(client.get(f"/v1/families/~{family}"), 404, "unknown-family")
    assert [one["name"] for one in client.get("/v1/families").json()["data"]] == ["other"]
    assert client.get("/v1/runs").json()["data"] == [] == client.get("/v1/alerts").json()["data"]
    assert [one["name"] for one in client.get("/v1/alert-rules").json()["data"]] == ["all"]
    assert f'family="{FAMILY}"' not in client.get("/metrics").text and "~" not in client.get("/metrics").text
    again = client.post("/v1/families", json={"name": FAMILY, "hook_points": ["resid_post.1"]})
    assert again.status_code == 201 and again.json()["n_features"] == 0

    with database.read() as session:
        assert storage.inspect(session, artifacts)["deletions"] == {
            "under_way": [family],
            "left_behind": [],
            "unknown": [],
        }
    sweep(filled, database)
    with database.read() as session:
        assert rows_with(session, family) == {"deletion": 1}
        assert set(rows_of(session, family).values()) == {0}
        assert rows_with(session, SECRET) == {}
        assert rows_with(session, stays) == of_other
        found = storage.inspect(session, artifacts)
    assert found["deletions"] == {"under_way": [], "left_behind": [], "unknown": []} and found["missing"] == []
    assert not artifacts.exists(family) and artifacts.listing(stays) == kept
    if database.is_sqlite:
        database.close()
        with database.writer.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("VACUUM")
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        database.close()
    assert files_with(filled.data_dir, SECRET) == []
    if database.is_sqlite:
        assert SECRET.encode() not in Path(str(database.url.database)).read_bytes()
    entries = client.get("/v1/audit").json()["data"]
    assert ("DELETE", URL, 204) in [(one["method"], one["path"], one["status"]) for one in entries]
    with database.read() as session:
        event = session.scalars(select(Event).where(Event.type == "family.deleted")).one()
        assert event.data == {"family": FAMILY}


def test_a_remote_store_and_its_cache_are_cleared(database: Database, filled: Settings) -> None:
    store_ = ArtifactStore("memory://deletions", filled.data_dir / "cache" / "artifacts")
    other = ArtifactStore("memory://deletions", filled.data_dir / "other")
    for family in ("fam_gone", "fam_kept"):
        with store_.create(f"{family}/activations-1") as place:
            place.mkdir()
            (place / "shard").write_text(SECRET)
            (place / "manifest.json").write_text("{}")
        with store_.create(f"{family}/documents-1.jsonl") as place:
            place.write_text(SECRET)
    other.path("fam_gone/documents-1.jsonl")
    deletions.clear(filled, store_, "fam_gone")
    assert store_.listing("fam_gone") == {} and len(store_.listing("fam_kept")) == 2
    assert not list((filled.data_dir / "cache").rglob("fam_gone/*"))
    with database.write() as session:
        session.add(Deletion(family_id="fam_gone", finished_at=utcnow()))
        session.flush()
        deletions.clear_deleted(session, filled, other)
    assert not (filled.data_dir / "other" / "fam_gone").exists(), "what another machine has read of it"


def test_a_folder_of_a_deleted_family_is_told(
    client: TestClient, database: Database, artifacts: ArtifactStore, filled: Settings
) -> None:
    """A worker that was cut off writes after the deletion: `db check` says so, and a later sweep removes it."""
    with database.read() as session:
        family = families.get(session, FAMILY).id
    client.delete(URL)
    sweep(filled, database)
    with artifacts.create(f"{family}/code-{'2' * 20}.safetensors") as place:
        place.write_text(SECRET)
    with artifacts.create("fam_other/code-1") as place:
        place.write_text("")
    with database.read() as session:
        found = storage.inspect(session, artifacts)["deletions"]
    assert found == {"under_way": [], "left_behind": [family], "unknown": ["fam_other"]}
    environment = {"FEATUREWATCH_DATA_DIR": str(filled.data_dir), "FEATUREWATCH_DATABASE_URL": filled.database_url}
    done = within("db", "check", env=environment)
    assert done.returncode == 1 and f"by deleted families: {family}" in done.stderr
    assert "of families unknown to the database: fam_other" in done.stderr
    Sweeper(filled, database, publish=None).vacuum()
    with database.read() as session:
        assert storage.inspect(session, artifacts)["deletions"]["left_behind"] == []


def test_a_deletion_that_was_killed_is_finished(
    client: TestClient, database: Database, artifacts: ArtifactStore, filled: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.delete(URL)
    code = (
        "import os, time\n"
        "from featurewatch.service.config import Settings\n"
        "from featurewatch.service.deletions import families\n"
        "from featurewatch.service.kit.db import Database\n"
        "from featurewatch.workers.sweeps import Sweeper\n"
        "families.ROWS = 20\n"
        "settings = Settings()\n"
        "Sweeper(settings, Database(settings.resolved_database_url), publish=None).erase()\n"
    )
    environment = {
        "FEATUREWATCH_DATA_DIR": str(filled.data_dir),
        "FEATUREWATCH_DATABASE_URL": filled.database_url,
    }

    def verdict_rows() -> int:
        with database.read() as session:
            return session.scalar(select(func.count()).select_from(Verdict)) or 0

    before = verdict_rows()
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | environment, cwd=Path.cwd())
    deadline = time.monotonic() + 120
    while verdict_rows() == before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with database.read() as session:
        (family,) = queries.under_way(session)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert local_database.vacuum(dry_run=True)["removed"] == {}
    with database.read() as session:
        assert queries.under_way(session) == [family]
    local_database.vacuum(dry_run=False)
    with database.read() as session:
        assert queries.under_way(session) == [] and rows_with(session, family) == {"deletion": 1}
    assert not artifacts.exists(family)


def test_steps_are_short_and_wait_for_a_worker(database: Database, filled: Settings, monkeypatch: Any) -> None:
    monkeypatch.setattr(deletions, "ROWS", 100)
    with database.write() as session:
        family = families.get(session, FAMILY)
        deletions.delete(session, family)
        # As where a registration was committed in the very moment of the deletion.
        late = runs.create(session, family_id=family.id, checkpoint_id=None, kind="label", params={})
        late.state, late.attempt = RunState.RUNNING, 1
        run_id, family_id = late.id, family.id
    with database.write() as session:
        assert deletions.step(session, family_id) == "busy"
    with database.write() as session:
        assert session.get_one(Run, run_id).state == "cancelling"
        assert runs.finish(session, run_id=run_id, attempt=1, state=RunState.CANCELLED)
    steps = 0
    while True:
        with database.write() as session:
            count = session.scalar(select(func.count()).select_from(Verdict)) or 0
            state = deletions.step(session, family_id)
            assert count - (session.scalar(select(func.count()).select_from(Verdict)) or 0) <= 100
        steps += 1
        if state == "empty":
            break
        assert state == "left"
    assert steps > 5


@pytest.mark.parametrize("path", [URL, f"{URL}/checkpoints/v5", f"{URL}/checkpoints/v5?reparent=true"])
def test_a_run_in_progress_comes_first(client: TestClient, database: Database, filled: Settings, path: str) -> None:
    run = client.post(f"{URL}/checkpoints", json={"name": "v6", "uri": "hf://org/model@v6"}).json()["run"]["id"]
    with database.write() as session:
        assert runs.claim(session, worker="w", lease_seconds=60) is not None
    refused = check_problem(client.delete(path), 409, "run-active")
    assert refused["run"] == run and run in refused["detail"]
    check_problem(client.delete(f"/v1/runs/{run}"), 409, "run-active")
    assert client.get(f"{URL}/checkpoints/v5").status_code == 200


def test_queued_runs_go_with_what_is_deleted(client: TestClient, database: Database, filled: Settings) -> None:
    run = client.post(f"{URL}/checkpoints", json={"name": "v6", "uri": "hf://org/model@v6"}).json()["run"]["id"]
    check_problem(client.delete(f"/v1/runs/{run}"), 409, "run-active")
    assert client.delete(f"{URL}/checkpoints/v6").status_code == 204
    check_problem(client.get(f"/v1/runs/{run}"), 404, "unknown-run")
    run = client.post(f"{URL}/checkpoints", json={"name": "v6", "uri": "hf://org/model@v6"}).json()["run"]["id"]
    assert client.delete(URL).status_code == 204
    check_problem(client.get(f"/v1/runs/{run}"), 404, "unknown-run")
    with database.write() as session:
        assert session.get_one(Run, run).state == "cancelled"
        assert runs.claim(session, worker="w", lease_seconds=60) is None


def references(session: Any, table: str, value: str) -> dict[str, int]:
    """Table.column -> rows that refer to a row of a table."""
    found = {}
    for other in Base.metadata.sorted_tables:
        for column in other.columns:
            if any(key.column.table.name == table for key in column.foreign_keys):
                count = session.scalar(select(func.count()).select_from(other).where(column == value))
                if count:
                    found[f"{other.name}.{column.name}"] = count
    return found


def test_the_last_checkpoint_takes_what_is_only_its_own(
    client: TestClient, database: Database, filled: Settings
) -> None:
    family = client.get(URL).json()
    with database.read() as session:
        row = families.get(session, FAMILY)
        last = checkpoints.get(session, row, "v5").id
        born = set(verdicts.born_in(session, row.id, last))
        assert born and references(session, "checkpoint", last)
    reports = [client.get(f"{URL}/checkpoints/v{number}/report").json() for number in range(5)]
    assert client.delete(f"{URL}/checkpoints/v5").status_code == 204
    check_problem(client.delete(f"{URL}/checkpoints/v5"), 404, "unknown-checkpoint")
    assert [client.get(f"{URL}/checkpoints/v{number}/report").json() for number in range(5)] == reports
    with database.read() as session:
        assert references(session, "checkpoint", last) == {}
        assert not session.scalars(select(Feature.number).where(Feature.number.in_(born))).all()
        told = session.scalars(select(Event).where(Event.type == "checkpoint.deleted")).one()
        assert told.data == {"family": FAMILY, "checkpoint": "v5", "parent": "v4", "children": []}
        assert session.scalar(text("SELECT count(*) FROM alert WHERE checkpoint_id IS NULL")) == 0
    after = client.get(URL).json()
    assert (after["n_features"], after["generation"]) == (family["n_features"], family["generation"]), "never again"
    assert after["positions"] == family["positions"]
    made = client.post(f"{URL}/checkpoints", json={"name": "v5", "uri": "hf://org/model@v5"})
    assert made.status_code == 202 and made.json()["checkpoint"]["parent"] == "v4"


def test_children_are_named_and_handed_on(client: TestClient, database: Database, filled: Settings) -> None:
    """As judged against the grandparent: the rows are those that a request for that comparison gave before."""
    refused = check_problem(client.delete(f"{URL}/checkpoints/v3"), 409, "checkpoint-has-children")
    assert refused["children"] == ["v4"]
    query = f"{URL}/features?checkpoint=v4&limit=500"
    wanted = client.get(f"{query}&baseline=v2").json()["data"]
    old = client.get(query).json()["data"]
    assert [one["projection_ratio"] for one in wanted] != [one["projection_ratio"] for one in old]
    before = client.get(f"{URL}/features?checkpoint=v5&baseline=v1&limit=500").json()["data"]
    with database.read() as session:
        row = families.get(session, FAMILY)
        gone = checkpoints.get(session, row, "v3").id
        born = set(verdicts.born_in(session, row.id, gone))
    with database.write() as session:
        ids = {one.id: one.name for one in session.scalars(select(Checkpoint))}
        for reading in session.scalars(select(Reading)):
            reading.status = {"v2": "suppressed", "v3": "absent"}.get(ids[reading.checkpoint_id], "present")
            reading.previous_status = "amplified"
    assert client.delete(f"{URL}/checkpoints/v3?reparent=true").status_code == 204
    with database.read() as session:
        previous = {ids[one.checkpoint_id]: one.previous_status for one in session.scalars(select(Reading))}
        assert (previous["v2"], previous["v4"], previous["v5"]) == ("amplified", "suppressed", "amplified")

    def shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{name: value for name, value in one.items() if name not in ("rewired", "born_in")} for one in rows]

    assert shown(client.get(query).json()["data"]) == shown(wanted)
    assert shown(client.get(f"{URL}/features?checkpoint=v5&baseline=v1&limit=500").json()["data"]) == shown(before)
    child = client.get(f"{URL}/checkpoints/v4").json()
    assert (child["parent"], child["deleted_parents"]) == ("v2", ["v3"])
    assert "size_factor" not in child["quality"]
    report = client.get(f"{URL}/checkpoints/v4/report").json()
    assert report["baseline"] == "v2"
    assert (
        "v4 was first judged against v3, which has since been deleted. It was judged again against v2 from stored "
        "measurements." in (report["caveats"])
    )
    assert sum(child["quality"]["statuses"].values()) == report["features"]
    assert {name: n for name, n in report["counts"].items() if n} == child["quality"]["statuses"]
    assert {name: n for name, n in report["places"].items() if n} == child["quality"]["places"]
    below = {one["id"]: one for one in client.get(f"{URL}/features?checkpoint=v5&limit=500").json()["data"]}
    above = {one["id"]: one for one in client.get(query).json()["data"]}
    assert all(one["previous_status"] == above[id_]["status"] for id_, one in below.items() if id_ in above)
    with database.read() as session:
        assert references(session, "checkpoint", gone) == {}
        heir = checkpoints.get(session, families.get(session, FAMILY), "v4").id
        assert born <= set(verdicts.born_in(session, families.get(session, FAMILY).id, heir))
        kept = session.scalars(select(Alert).where(Alert.checkpoint_id == heir, Alert.state != "resolved")).all()
        assert len({alert.key for alert in kept}) == len(kept)
    sources = client.get(f"{URL}/features/F1/sources").json()["data"]
    of_child = next(one for one in sources if one["checkpoint"] == "v4")["sources"]
    assert [(one["projection_ratio"], one["paired_with"]) for one in of_child] == [(None, None)] * 2
    assert all(one["strength"] is not None for one in of_child)
    for parent in (None, "v3", "v2"):
        body = {"name": "v4", "uri": "hf://org/model@v4"} | ({"parent": parent} if parent else {})
        assert client.post(f"{URL}/checkpoints", json=body).status_code == 200, parent
    other = client.post(f"{URL}/checkpoints", json={"name": "v4", "uri": "hf://org/model@v4", "parent": "v1"})
    check_problem(other, 409, "name-used")


def test_what_others_are_built_on_stays(client: TestClient, database: Database, filled: Settings) -> None:
    with database.write() as session:
        session.query(Signature).delete()
    first = check_problem(client.delete(f"{URL}/checkpoints/v0?reparent=true"), 409, "checkpoint-in-use")
    assert "v1 cannot be attached to its parent" in first["detail"]
    with database.write() as session:
        family = families.get(session, FAMILY)
        link = {"generation": 2, "old": 1, "new": None, "kind": "retired", "score": 0.1}
        for name in ("v3", "v5"):
            at = checkpoints.get(session, family, name).id
            session.add(LineageLink(family_id=family.id, checkpoint_id=at, **link))
            link = link | {"generation": 3, "old": 2}
        for number, generation in ((1, 2), (2, 3)):
            session.get_one(Feature, (family.id, number)).retired_in = generation
    refit = check_problem(client.delete(f"{URL}/checkpoints/v3?reparent=true"), 409, "checkpoint-in-use")
    assert "fitted generation 2, which v4 use" in refit["detail"]
    assert client.delete(f"{URL}/checkpoints/v5").status_code == 204
    with database.write() as session:
        family = families.get(session, FAMILY)
        retired = [session.get_one(Feature, (family.id, number)).retired_in for number in (1, 2)]
        assert retired == [2, None], "what the deleted re-fit retired lives again"
        at = checkpoints.get(session, family, "v4").id
        row = {"settings": {}, "contrast": "", "n_rows": 1, "n_positive": 1, "description": "", "chosen": None}
        session.add(Signature(family_id=family.id, name="refusal", baseline_id=at, **row))
    signature = check_problem(client.delete(f"{URL}/checkpoints/v4"), 409, "checkpoint-in-use")
    assert "the baseline of refusal" in signature["detail"]


def test_features_go_or_are_attributed_to_others(client: TestClient, database: Database) -> None:
    """A discovered feature goes with the past that was measured of it; one of a joint first fit stays."""
    with database.write() as session:
        family = factories.family(session)
        first = factories.checkpoint(session, family, "v1")
        last = factories.checkpoint(session, family, "v2", parent=first)
        for number, origin in enumerate(("fitted", "discovered", "emerged")):
            feature = factories.feature(session, family, number, last, origin=origin)
            factories.verdict(session, last, feature, previous_status=None)
            if origin != "emerged":
                factories.verdict(session, first, feature, previous_status=None)
        family.n_features = 3
    assert client.delete("/v1/families/smol/checkpoints/v2").status_code == 204
    with database.read() as session:
        assert [(one.number, one.born_in) for one in session.scalars(select(Feature))] == [(0, first.id)]
        assert [one.feature for one in session.scalars(select(Verdict))] == [0]


def test_alerts_of_a_deleted_checkpoint_are_over_or_handed_on(client: TestClient, database: Database) -> None:
    rule = {"name": "any", "condition": {"kind": "watched"}}
    rule_id = client.post("/v1/alert-rules", json=rule).json()["id"]
    with database.write() as session:
        family = factories.family(session)
        v1 = factories.checkpoint(session, family, "v1")
        v2 = factories.checkpoint(session, family, "v2", parent=v1)
        v3 = factories.checkpoint(session, family, "v3", parent=v2, state="failed")
        alert = Alert(kind="watched", key=f"watched:{rule_id}:{v2.id}", rule_id=rule_id, summary="v2: F1", evidence=[])
        alert.family_id, alert.checkpoint_id, alert.created_at = family.id, v2.id, utcnow()
        session.add(alert)
    assert client.delete("/v1/families/smol/checkpoints/v2?reparent=true").status_code == 204
    assert client.get("/v1/alerts").json()["data"] == []
    child = client.get("/v1/families/smol/checkpoints/v3").json()
    assert (child["parent"], child["deleted_parents"]) == ("v1", ["v2"])
    with database.read() as session:
        told = session.scalars(select(Event.type).order_by(Event.type)).all()
        assert told == ["alert.resolved", "checkpoint.deleted"]
        assert session.get_one(Checkpoint, v3.id).parent_id == v1.id


def test_runs_that_ended_are_deleted(client: TestClient, database: Database, filled: Settings) -> None:
    checkpoint = client.get(f"{URL}/checkpoints/v5").json()
    run = checkpoint["run"]["id"]
    assert client.delete(f"/v1/runs/{run}").status_code == 204
    check_problem(client.delete(f"/v1/runs/{run}"), 404, "unknown-run")
    with database.read() as session:
        assert references(session, "run", run) == {}
    assert client.get(f"{URL}/checkpoints/v5").json() == checkpoint | {"run": None}
    again = client.post(f"{URL}/checkpoints", json={"name": "v5", "uri": "hf://org/model@v5"})
    assert (again.status_code, again.json()["run"]) == (200, None)
    assert again.headers["location"] == f"{URL}/checkpoints/v5"
    body = {"name": "v6", "uri": "hf://org/model@v6"}
    failed = client.post(f"{URL}/checkpoints", json=body).json()["run"]["id"]
    assert client.post(f"/v1/runs/{failed}/cancel").status_code == 202
    assert client.delete(f"/v1/runs/{failed}").status_code == 204
    again = client.post(f"{URL}/checkpoints", json=body)
    assert again.status_code == 202 and again.json()["run"]["state"] == "queued"


@pytest.mark.anyio
async def test_a_stream_ends_where_its_run_is_deleted(database: Database) -> None:
    assert [event async for event in events.stream(database, "run_gone", ANONYMOUS)] == ["retry: 2000\n\n"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_queued_runs_of_a_deleted_signature_are_cancelled(
    client: TestClient, database: Database, filled: Settings
) -> None:
    with database.write() as session:
        family = families.get(session, FAMILY)
        at = checkpoints.get(session, family, "v5").id
        ids = {one.name: one.id for one in session.scalars(select(Signature))}
        alone, both = (
            runs.create(
                session, family_id=family.id, checkpoint_id=at, kind="signature", params={"signatures": some}
            ).id
            for some in ([ids["concept-0"]], [ids["concept-0"], ids["concept-1"]])
        )
        rule_id = None
        for name, names in (("a", ["concept-0"]), ("b", ["concept-0", "concept-1"])):
            evidence = [{"signature": one} for one in names]
            alert = Alert(kind="signature", key=name, rule_id=rule_id, summary=name, evidence=evidence)
            alert.family_id, alert.checkpoint_id = family.id, at
            session.add(alert)
    assert client.delete(f"{URL}/signatures/concept-0").status_code == 204
    assert client.get(f"/v1/runs/{alone}").json()["state"] == "cancelled"
    assert client.get(f"{URL}/checkpoints/v5").json()["state"] == "judged"
    with database.read() as session:
        rest = session.get_one(Run, both)
        assert (rest.state, rest.params["signatures"]) == ("queued", [ids["concept-1"]])
        states = {
            alert.key: (alert.state, alert.evidence) for alert in session.scalars(select(Alert)) if alert.key < "c"
        }
    assert states["a"][0] == "resolved" and states["b"] == ("open", [{"signature": "concept-1"}])


def test_artifacts_that_others_use_stay(
    client: TestClient, database: Database, artifacts: ArtifactStore, filled: Settings
) -> None:
    with database.write() as session:
        family = families.get(session, FAMILY)
        v4, v5 = (verdicts.code(session, checkpoints.get(session, family, name).id) for name in ("v4", "v5"))
        assert v4 and v5
        alone, v5.examples, shared = v5.artifact, v4.examples, v4.examples
        family_id = family.id
    assert client.delete(f"{URL}/checkpoints/v5").status_code == 204
    impatient = filled.model_copy(update={"vacuum_hours": 1e-9})
    for _ in range(2):  # noted, then removed
        sweeper = Sweeper(impatient, database, publish=None)
        sweeper.vacuum()
    assert not artifacts.exists(alone) and artifacts.exists(shared)
    with database.read() as session:
        assert not {one["artifact"] for one in storage.inspect(session, artifacts)["missing"]} & {shared}
    assert family_id


def test_deleting_a_family_takes_an_administrator(tmp_path: Path, database_url: str) -> None:
    from featurewatch.service.app import create_app  # noqa: PLC0415
    from featurewatch.service.auth import logic as auth  # noqa: PLC0415

    settings = Settings(data_dir=tmp_path / "keyed", database_url=database_url, log_level="ERROR")
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        database: Database = client.app.state.database  # type: ignore[attr-defined]
        with database.write() as session:
            keys = {scope: auth.create(session, name=scope, scopes=[scope])[1] for scope in ("write", "admin")}
            factories.checkpoint(session, factories.family(session), "v1")
        headers = {scope: {"Authorization": f"Bearer {key}"} for scope, key in keys.items()}
        check_problem(client.delete("/v1/families/smol", headers=headers["write"]), 403, "missing-scope")
        assert client.delete("/v1/families/smol/checkpoints/v1", headers=headers["write"]).status_code == 204
        assert client.delete("/v1/families/smol", headers=headers["admin"]).status_code == 204
