"""OpenTelemetry: spans of requests, statements and tasks where it is asked for, and nothing of it where it is not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REQUEST = """
import sys
from fastapi.testclient import TestClient
from featurewatch.service import migrate
from featurewatch.service.app import create_app
from featurewatch.service.config import Settings
settings = Settings(data_dir=sys.argv[1], require_keys=False, log_level="ERROR")
migrate.upgrade(settings)
with TestClient(create_app(settings), base_url="http://localhost") as client:
    assert client.get("/v1/families").status_code == 200
print("loaded" if "opentelemetry.sdk" in sys.modules else "untouched")
"""
TASK = """
import os, sys
from celery.signals import worker_process_init, worker_process_shutdown
from featurewatch.service import migrate
from featurewatch.service.config import Settings
migrate.upgrade(Settings())
from featurewatch.workers import tasks
worker_process_init.send(sender=None)
tasks.execute.apply(args=["run_none"])
worker_process_shutdown.send(sender=None)
"""


def run(program: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("FEATUREWATCH_", "OTEL_"))}
    return subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        cwd=ROOT,
        env=clean | {"FEATUREWATCH_DATA_DIR": str(folder)} | variables,
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.parametrize("variables", [{}, {"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}])
def test_off_where_nobody_asks(tmp_path: Path, variables: dict[str, str]) -> None:
    assert run(REQUEST, tmp_path, **variables).stdout.split() == ["untouched"]


def test_requests_and_statements(tmp_path: Path) -> None:
    told = run(REQUEST, tmp_path, OTEL_TRACES_EXPORTER="console", OTEL_SERVICE_NAME="under-test").stdout
    assert '"name": "GET /v1/families"' in told
    assert '"name": "SELECT' in told
    assert '"service.name": "under-test"' in told


def test_tasks(tmp_path: Path) -> None:
    told = run(TASK, tmp_path, OTEL_TRACES_EXPORTER="console").stdout
    assert '"name": "run/featurewatch.workers.tasks.execute"' in told
    assert '"name": "SELECT' in told or '"name": "UPDATE' in told
    assert len(set(re.findall(r'"trace_id": "(\w+)"', told))) == 1, "the statements are parts of the task"
