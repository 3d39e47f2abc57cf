"""Deleting on the pages: a confirmation page with a form that needs no script."""

import html
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from featurewatch.service.config import Settings
from featurewatch.service.models import AuditEntry, Checkpoint, Family, Run, Signature
from tests.web.conftest import SECRET, Installation, open_installation
from tests.web.filled import FAMILY

HERE = f"/families/{FAMILY}"
PAGES = [HERE, f"{HERE}/checkpoints/v10", f"{HERE}/signatures/concept-0", "/runs/run_failed"]


@pytest.fixture(scope="module")
def own(filled_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation of its own, since its contents are deleted."""
    folder = tmp_path_factory.mktemp("deleting-") / "data"
    shutil.copytree(filled_folder, folder)
    with open_installation(Settings(data_dir=folder, secret_key=SECRET, log_level="ERROR")) as installation:
        yield installation


@pytest.fixture(params=["own", "on_postgres"])
def installation(request: pytest.FixtureRequest) -> Installation:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("path", PAGES)
def test_deleting_asks_for_confirmation(filled: Installation, path: str) -> None:
    reader, writer, admin = (filled.browser(scope) for scope in ("read", "write", "admin"))
    link = f'href="{path}/delete"'
    assert link not in reader.page(path) and reader.get(f"{path}/delete").status_code == 403
    assert (link in writer.page(path)) == (path != HERE), "only an administrator deletes a family"
    if path == HERE:
        assert writer.get(f"{path}/delete").status_code == 403 == writer.send(f"{path}/delete").status_code
    assert link in admin.page(path)
    text = admin.page(f"{path}/delete")
    assert "This cannot be undone." in text and f'<form method="post" action="{path}/delete">' in text
    assert "onclick" not in text and "data-confirm" not in text, "the page itself asks"
    foreign = admin.send(f"{path}/delete", token="none")
    assert foreign.status_code == 403 and admin.get(path).status_code == 200


def test_active_runs_and_children_prevent_deletion(filled: Installation) -> None:
    admin = filled.browser("admin")
    assert 'href="/runs/run_running/delete"' not in admin.page("/runs/run_running")
    refused = admin.send("/runs/run_running/delete")
    assert refused.status_code == 409 and "Cancel it or wait until it ends" in refused.text
    refused = admin.send("/families/live/delete")
    assert refused.status_code == 409 and "run_running" in refused.text
    assert "has no parent that they could be moved to" in admin.page(f"{HERE}/checkpoints/v0/delete")
    refused = admin.send(f"{HERE}/checkpoints/v3/delete")
    assert refused.status_code == 409 and "has children: v4" in html.unescape(refused.text)


def test_forms_delete_everything(installation: Installation) -> None:
    browser = installation.browser("admin")

    def count(table: type) -> int:
        with installation.database.read() as session:
            return len(session.scalars(select(table)).all())

    before = {table: count(table) for table in (Run, Signature, Checkpoint)}
    answer = browser.send("/runs/run_failed/delete")
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs")
    assert count(Run) == before[Run] - 1
    answer = browser.send(f"{HERE}/signatures/concept-0/delete")
    assert (answer.status_code, answer.headers["location"]) == (303, f"{HERE}/signatures")
    assert count(Signature) == before[Signature] - 1
    page = browser.page(f"{HERE}/checkpoints/v3/delete")
    assert 'name="reparent" value="yes" required' in page and "Make v2 the parent of v4, v9" in page
    answer = browser.send(f"{HERE}/checkpoints/v3/delete", {"reparent": "yes"})
    assert (answer.status_code, answer.headers["location"]) == (303, HERE)
    assert count(Checkpoint) == before[Checkpoint] - 1
    report = browser.page(f"{HERE}/checkpoints/v4")
    assert (
        "v4 was first judged against v3, which has since been deleted." in report
        and "<dt>deleted parents</dt><dd>v3</dd>" in report
    )
    for path in (HERE, f"{HERE}/diff?from=v2&to=v5", f"{HERE}/features?checkpoint=v4", f"{HERE}/features/F1"):
        browser.page(path)
    answer = browser.send(f"{HERE}/delete")
    assert (answer.status_code, answer.headers["location"]) == (303, "/families")
    assert browser.get(HERE).status_code == 404 and f">{FAMILY}<" not in browser.page("/families")
    for path in ("/runs", "/alerts"):
        assert FAMILY not in browser.page(path)
    with installation.database.read() as session:
        paths = [entry.path for entry in session.scalars(select(AuditEntry)) if entry.path.endswith("/delete")]
        assert len(paths) == 4 and f"{HERE}/delete" in paths
        assert FAMILY not in session.scalars(select(Family.name)).all()
