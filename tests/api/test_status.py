"""Health, readiness and metrics."""

from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.kit.artifacts import ArtifactStore
from service.kit.db import Database
from service.runs import logic as runs
from tests import factories
from tests.api.test_errors import check_problem


def test_ready(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    checks = {"database": "ok", "schema": "ok", "artifacts": "ok"}
    assert client.get("/readyz").json() == {"status": "ready", "checks": checks}


def test_not_ready_says_what_is_missing(app: FastAPI, client: TestClient, database: Database, tmp_path) -> None:
    with database.writer.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    (tmp_path / "file").write_text("")
    app.state.artifacts = ArtifactStore(f"file://{tmp_path}/file/below", tmp_path)
    response = client.get("/readyz")
    document = check_problem(response, 503, "not-ready")
    assert document["checks"]["database"] == "ok"
    assert "0000" in document["checks"]["schema"]
    assert document["checks"]["artifacts"].startswith("not reachable")
    assert client.get("/healthz").status_code == 200


def test_metrics(client: TestClient, database: Database) -> None:
    with database.write() as session:
        family = factories.family(session)
        first = factories.checkpoint(session, family, "v1", quality={"fvu": 0.5})
        factories.checkpoint(session, family, "v2", parent=first, quality={"fvu": 0.25})
        runs.create(session, family_id=family.id, checkpoint_id=first.id, kind="onboard", params={})
    lines = client.get("/metrics").text.splitlines()
    assert 'featurewatch_runs{state="queued"} 1.0' in lines
    assert 'featurewatch_runs{state="failed"} 0.0' in lines
    assert 'featurewatch_deliveries{state="pending"} 0.0' in lines
    assert 'featurewatch_fvu{checkpoint="v2",family="smol"} 0.25' in lines
    assert not any('checkpoint="v1"' in line for line in lines)
    age = next(line for line in lines if line.startswith("featurewatch_oldest_queued_seconds "))
    assert float(age.split()[1]) >= 0
