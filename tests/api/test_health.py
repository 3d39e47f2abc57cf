"""Health, readiness and metrics."""

import json
import platform
from datetime import timedelta
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from featurewatch.service import __version__, migrate
from featurewatch.service.config import Settings
from featurewatch.service.health import queries
from featurewatch.service.health.metrics import METRICS
from featurewatch.service.kit import clock
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.db import Database
from featurewatch.service.kit.logs import configure_logging
from featurewatch.service.models import Alert, AlertRule, Webhook
from featurewatch.service.runs import logic as runs
from featurewatch.service.webhooks import logic as webhooks
from tests import factories
from tests.api.test_errors import check_problem

HEAD = ScriptDirectory("migrations").get_current_head()


def test_ready(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    checks = {"database": "ok", "schema": "ok", "artifacts": "ok"}
    workers = {"running": 0, "stuck": 0}
    assert client.get("/readyz").json() == {"status": "ready", "checks": checks, "workers": workers}


def test_ready_says_which_workers_are_there(client: TestClient, database: Database) -> None:
    with database.write() as session:
        now = clock.database_now(session)
        for name, stuck, ago in (("a", False, 1), ("b", True, 1), ("killed", False, 60), ("forgotten", False, 100_000)):
            queries.note_worker(session, name, stuck=stuck, now=now - timedelta(seconds=ago))
        queries.note_worker(session, "ended", stuck=False, now=now)
        queries.forget_worker(session, "ended")
    assert client.get("/readyz").json()["workers"] == {"running": 2, "stuck": 1}


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


def test_a_probe_leaves_nothing_in_the_log_and_a_migration_says_what_it_does(
    client: TestClient, api_settings: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging(api_settings.model_copy(update={"log_level": "INFO", "log_json": True}))
    try:
        client.get("/readyz")
        told = [json.loads(line)["logger"] for line in capfd.readouterr().err.splitlines()]
        assert [name for name in told if not name.startswith("httpx")] == []
        migrate.upgrade(Settings(data_dir=tmp_path / "new"))
        assert "Running upgrade" in capfd.readouterr().err
    finally:
        configure_logging(api_settings)


def test_metrics(client: TestClient, database: Database) -> None:
    with database.write() as session:
        family = factories.family(session)
        factories.family(session, "quiet")
        first = factories.checkpoint(session, family, "v1", quality={"fvu": 0.5})
        second = factories.checkpoint(session, family, "v2", parent=first, quality={"fvu": 0.25})
        for device in ("cpu", None, "cpu"):
            run = runs.create(session, family_id=family.id, checkpoint_id=first.id, kind="onboard", params={})
            run.seconds, run.usage = {"harvest": 1.5, "extend": 2.25}, {"device": device} if device else {}
        rule = AlertRule(name="rule", family_id=None, condition={"kind": "watched"})
        session.add(rule)
        session.flush()
        for checkpoint, state in ((first, "resolved"), (second, "open")):
            row = Alert(kind="watched", key=f"watched:{checkpoint.id}", rule_id=rule.id, state=state, summary="")
            row.family_id, row.checkpoint_id, row.evidence = family.id, checkpoint.id, []
            session.add(row)
        session.add(Alert(kind="webhook_paused", key="webhook_paused:whk_1", summary="", evidence=[]))
        webhook = Webhook(url="https://ci.example", event_types=[], sealed_url=b"", secret=b"", disabled_reason=None)
        session.add(webhook)
        session.flush()
        webhooks.test(session, webhook)
        judged_at = second.judged_at
    text = client.get("/metrics").text
    lines = text.splitlines()
    for line in (
        'featurewatch_runs{kind="onboard",state="queued"} 3.0',
        'featurewatch_runs{kind="onboard",state="failed"} 0.0',
        'featurewatch_compute_seconds_total{device="cpu",kind="onboard"} 7.5',
        'featurewatch_compute_seconds_total{device="unknown",kind="onboard"} 3.75',
        'featurewatch_deliveries{state="pending"} 1.0',
        'featurewatch_deliveries{state="failed"} 0.0',
        'featurewatch_open_alerts{family="smol"} 1.0',
        'featurewatch_open_alerts{family="quiet"} 0.0',
        'featurewatch_open_alerts{family=""} 1.0',
        'featurewatch_fvu_ratio{checkpoint="v2",family="smol"} 0.25',
        f'featurewatch_schema_info{{revision="{HEAD}"}} 1.0',
        f'featurewatch_build_info{{python="{platform.python_version()}",version="{__version__}"}} 1.0',
    ):
        assert line in lines, f"{line}\n{text}"
    assert not any('checkpoint="v1"' in line for line in lines)
    figures = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(figures['featurewatch_last_judged_timestamp_seconds{family="smol"}']) == pytest.approx(
        judged_at.timestamp(), abs=1
    )
    for name in ("featurewatch_oldest_queued_seconds", "featurewatch_oldest_pending_delivery_seconds"):
        assert 0 < float(figures[name]) < 3600
    # Every name of the table is scraped as it stands there, and nothing else is.
    typed = {line.split()[2]: line.split()[3] for line in lines if line.startswith("# TYPE")}
    wanted = {metric.name: "counter" if metric.name.endswith("_total") else "gauge" for metric in METRICS}
    assert typed == wanted


def test_metrics_of_an_empty_installation(client: TestClient) -> None:
    lines = client.get("/metrics").text.splitlines()
    assert "featurewatch_oldest_queued_seconds 0.0" in lines
    assert "featurewatch_oldest_pending_delivery_seconds 0.0" in lines
