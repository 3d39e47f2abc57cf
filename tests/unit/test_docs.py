"""The docs say what the code does: settings, commands, paths and links."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from featurewatch.service.config import ClientSettings, Settings, TelemetrySettings
from featurewatch.service.health.metrics import METRICS
from featurewatch.service.webhooks.schemas import TEST_EVENT, EventType
from tests.unit import codes

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
GUIDES = ["README.md", *(f"docs/guide-{who}.md" for who in ("researcher", "ci", "platform"))]


@pytest.mark.parametrize("settings", [Settings, ClientSettings])
def test_every_setting_is_documented(settings: type[Settings | ClientSettings]) -> None:
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    for name, field in settings.model_fields.items():
        assert f"| `FEATUREWATCH_{name.upper()}` |" in page, f"run make docs: {name} is not in docs/configuration.md"
        assert field.description, f"the setting {name} has no description"


def test_no_page_names_a_setting_that_is_none() -> None:
    known = {f"FEATUREWATCH_{name.upper()}" for name in [*Settings.model_fields, *ClientSettings.model_fields]}
    known |= {f"FEATUREWATCH_TEST_{name}" for name in ("POSTGRES_URL", "REDIS_URL", "CHROMIUM")} | {"FEATUREWATCH_"}
    known |= {"FEATUREWATCH_PACKAGE", "FEATUREWATCH_LOCK"}  # variables of the GitLab job
    for page in PAGES:
        named = set(re.findall(r"FEATUREWATCH_[A-Z_]*", page.read_text(encoding="utf-8")))
        assert named <= known, f"{page.name} names {sorted(named - known)}"


def test_generated_pages_are_up_to_date() -> None:
    command = [sys.executable, "docs/build.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_metrics_and_events_are_documented() -> None:
    page = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")
    for metric in METRICS:
        assert f"| `{metric.name}` |" in page, f"run make docs: {metric.name} is not in docs/monitoring.md"
    for name in TelemetrySettings.model_fields:
        assert f"OTEL_{name.upper()}=" in page
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    for event in (*EventType, TEST_EVENT):
        assert f"`{event}`" in page, f"the event {event} is not in docs/api.md"


def test_the_dashboard_asks_for_what_there_is() -> None:
    """Every query names metrics and labels of `/metrics`; every metric has a panel."""
    dashboard = json.loads((ROOT / "deploy/grafana/featurewatch.json").read_text(encoding="utf-8"))
    known = {metric.name: {*metric.labels, "job", "instance"} for metric in METRICS}
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    for query in [*asked, *(variable["query"] for variable in dashboard["templating"]["list"][1:])]:
        names = re.findall(r"\bfeaturewatch_\w+", query)
        assert len(names) == 1 and names[0] in known, query
        grouped = re.findall(r"by \(([^)]*)\)", query)
        labels = {label.strip() for group in grouped for label in group.split(",")}
        labels |= set(re.findall(r"[{,] ?(\w+)=", query))
        assert labels <= known[names[0]], query
    assert set(re.findall(r"\bfeaturewatch_\w+", " ".join(asked))) == set(known)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """To a file that is there, and to a heading that it has."""
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            there = page.parent / target if target else page
            assert there.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(there), f"{page.name} links to {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_gpu_file_changes_services_that_there_are() -> None:
    found = re.search(
        r"```yaml\n(services:.+?)```", (ROOT / "docs/guide-platform.md").read_text(encoding="utf-8"), re.S
    )
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    assert found
    for name, changes in yaml.safe_load(found[1])["services"].items():
        assert set(changes) <= set(services[name])
        assert set(changes["build"]["args"]) <= set(re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.M))


def test_commands_of_the_docs_exist() -> None:
    """Every `featurewatch ...` line of README and guides is one of the commands of docs/cli.md. (That they work:
    tests/cli/test_docs_commands.py.)"""
    known = re.findall(r"^## featurewatch (.+)$", (ROOT / "docs/cli.md").read_text(encoding="utf-8"), re.M)
    for name in GUIDES:
        text = (ROOT / name).read_text(encoding="utf-8")
        lines = re.findall(r"^    (?:docker compose exec api )?featurewatch (.+)$", text, re.M)
        assert lines
        for line in lines:
            assert any(line == command or line.startswith(f"{command} ") for command in known), f"{name}: {line}"


def test_options_of_the_docs_exist() -> None:
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    for name in GUIDES:
        text = (ROOT / name).read_text(encoding="utf-8")
        for line in re.findall(r"^    featurewatch (.+)$", text, re.M):
            heading = max((h for h in re.findall(r"^## featurewatch (.+)$", page, re.M) if line.startswith(h)), key=len)
            section = page.partition(f"## featurewatch {heading}\n")[2].partition("\n## ")[0]
            for option in re.findall(r"(?<= )--[a-z-]+", line):
                assert f"`{option}`" in section, f"{name}: `featurewatch {heading}` has no {option}"


def test_make_targets_of_the_readme_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z]+)\b", readme):
        assert re.search(rf"^{target}:", makefile, re.M), f"there is no `make {target}`"


def test_every_code_of_an_error_is_documented() -> None:
    """Codes of answers, each with its status and what to do, and of runs that failed; and no code that there is not."""
    answers, _, runs = (ROOT / "docs/problems.md").read_text(encoding="utf-8").partition("\n## Failed runs\n")
    listed = [code for codes_, *_ in rows_of(runs) for code in re.findall(r"`([^`]+)`", codes_)]
    assert sorted(listed) == sorted(codes.of_runs())
    told = [(code, int(row[1])) for row in rows_of(answers) for code in re.findall(r"`([^`]+)`", row[0])]
    assert sorted(told) == sorted(codes.of_problems().items())


def rows_of(page: str) -> list[list[str]]:
    """Rows of a page's tables that begin with a code; none of their cells is empty."""
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert all(all(row) for row in rows)
    return rows
