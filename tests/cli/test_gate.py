"""The gate in CI: what it leaves for people and machines, and the steps for GitHub and GitLab, run as they run them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from featurewatch.service import __version__
from featurewatch.service.cli.base import UsageError
from featurewatch.service.cli.gate import policy, rules
from featurewatch.service.client import Client
from tests.cli.blocks import blocks
from tests.cli.installed import copy_source, make_environment
from tests.cli.live import FIT, Up
from tests.services import free_port

ROOT = Path(__file__).parents[2]
POLICY = """
[counts]
absent = 0
emerged = 40
[watched]
never = ["suppressed", "absent", "replaced"]
[tags.harmless]
never = ["absent"]
[quality]
fvu = 1.0
"""
HOSTILE = 'v2$(touch pwned)`touch pwned`"; touch pwned #'
"""A tag that anybody may give; as shell text it would make a file."""


@pytest.fixture(scope="module")
def gated(service: Up, planted: Path) -> Up:
    """The service with a family `gated` whose v1 is judged."""
    service.json("family", "create", "gated", "--hook-point", "resid_post.1", *FIT)
    done = service.run("checkpoint", "register", "gated", "v1", f"activations+file://{planted}/v1", "--wait")
    assert done.returncode == 0, done.stderr
    return service


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH on which `featurewatch` is this checkout's."""
    script = tmp_path / "bin" / "featurewatch"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nfrom featurewatch.service.cli import main\nmain()\n", encoding="utf-8")
    script.chmod(0o755)
    return f"{script.parent}:{os.environ['PATH']}"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip needs of this checkout; it leaves a build in it."""
    folder = tmp_path_factory.mktemp("checkout")
    copy_source(folder)
    (folder / "requirements").mkdir()
    shutil.copy(ROOT / "requirements" / "base.lock", folder / "requirements")
    return folder


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment in which pip has to bring `featurewatch`, without the net.

    What it depends on is here already, in the versions of the lock, and so is setuptools; but not in PYTHONPATH, where
    an installation of the job would be hidden by this one.
    """
    python, home = tmp_path / "bare" / "python3", tmp_path / "job"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{home}/bin/python" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    make_environment(home)
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull, "PYTHONPATH": "",
            "PATH": f"{home}/bin:{python.parent}:/usr/bin:/bin"}  # fmt: skip


def bash(script: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """Run a step as the runners do, in an environment of nothing else."""
    shell = [shutil.which("bash") or "bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    clean = {"PYTHONPATH": str(ROOT), "HOME": str(folder)} | environment
    return subprocess.run(shell, cwd=folder, env=clean, capture_output=True, text=True, timeout=120, check=False)


def lines_of(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text(encoding="utf-8").splitlines())


def github(step: dict[str, Any], inputs: dict[str, str], folder: Path, path: str) -> subprocess.CompletedProcess:
    """Run a step of the action with its inputs, as GitHub fills them into `env`, and with the files that it names."""
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    values = {name: inputs.get(name, about.get("default", "")) for name, about in action["inputs"].items()}
    for name, about in action["inputs"].items():
        assert not about.get("required") or name in inputs, name
    environment = {
        name: re.sub(r"\$\{\{ inputs\.([a-z]+) \}\}", lambda found: values[found[1]], text)
        for name, text in step["env"].items()
    }
    files = {"GITHUB_OUTPUT": str(folder / "output"), "GITHUB_STEP_SUMMARY": str(folder / "page.md")}
    return bash(step["run"], folder, environment | files | {"PATH": path, "GITHUB_ACTION_PATH": str(ROOT)})


def test_the_action_gates_a_release(gated: Up, planted: Path, tmp_path: Path, path: str) -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    steps = action["runs"]["steps"]
    assert all("${{" not in step["run"] for step in steps), "an input that is put into shell text is shell text"
    step = next(step for step in steps if step.get("id") == "gate")
    (tmp_path / "gate.toml").write_text(POLICY, encoding="utf-8")
    inputs = {
        "url": gated.url, "family": "gated", "checkpoint": HOSTILE, "uri": f"activations+file://{planted}/v2",
        "parent": "v1", "gate": "gate.toml", "junit": "out/gate.xml",
    }  # fmt: skip
    refused = github(step, inputs, tmp_path, path)
    assert refused.returncode == 2, refused.stderr
    assert not (tmp_path / "pwned").exists()
    assert lines_of(tmp_path / "output")["status"] == "error"
    assert "has no verdict" in (tmp_path / "page.md").read_text(encoding="utf-8")
    (tmp_path / "output").unlink()

    done = github(step, inputs | {"checkpoint": "v2"}, tmp_path, path)
    assert done.returncode == 1, done.stderr
    assert "counts.absent: " in done.stdout
    told = lines_of(tmp_path / "output")
    assert told["status"] == "failed"
    assert gated.json("run", "show", told["run_id"])["checkpoint"] == "v2"
    assert told["report_url"] == f"{gated.url}/families/gated/checkpoints/v2"
    for output in action["outputs"].values():
        assert re.fullmatch(r"\$\{\{ steps\.gate\.outputs\.(status|run_id|report_url) \}\}", output["value"])

    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "# featurewatch: v2 of gated failed its gate" in page
    assert "| counts.emerged | at most 40 features become emerged | passed |" in page
    assert "# gated: v2 against v1" in page
    absent = [row["id"] for row in gated.json("features", "gated", "--checkpoint", "v2", "--status", "absent")]
    suite = ElementTree.parse(tmp_path / "out" / "gate.xml").getroot()
    cases = {case.get("name", "").partition(":")[0]: case for case in suite.iter("testcase")}
    assert list(cases) == ["counts.absent", "counts.emerged", "watched", "tags.harmless", "quality.fvu"]
    assert {name for name, case in cases.items() if case.find("failure") is not None} == {"counts.absent"}
    why = cases["counts.absent"].findtext("failure") or ""
    assert len(why.splitlines()) == len(absent) and all(f"{name} is absent: " in why for name in absent)
    assert "95% CI" in why and "written along its direction" in why and "(q " in why
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("5", "1", "0")


@pytest.fixture(scope="module")
def releases(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions of v1: one with noise in place of its activations, one whose positions are in another order."""
    folder, rng = tmp_path_factory.mktemp("releases"), np.random.default_rng(0)
    for name in ("untrained", "misread"):
        shutil.copytree(planted / "v1", planted / name)
        (shard,) = (planted / name).glob("resid_post*.safetensors")
        x = load_file(shard)["activations"]
        broken = rng.standard_normal(x.shape) if name == "untrained" else x[rng.permutation(len(x))]
        save_file({"activations": broken.astype(x.dtype)}, shard)
    return folder


def gate(service: Up, folder: Path, name: str, uri: str, *options: str) -> tuple[int, dict[str, Any]]:
    """Register a checkpoint of the family `whole` with the default gate: exit code and answer."""
    register = ["checkpoint", "register", "whole", name, f"activations+file://{uri}", "--gate", "default", *options]
    done = service.run(*register, "--summary", str(folder / f"{name}.md"), "--junit", str(folder / f"{name}.xml"),
                       "--json")  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def test_the_default_gate_asks_whether_it_could_be_judged(service: Up, planted: Path, releases: Path) -> None:
    """It lets a first checkpoint, a version that lost some features, and a re-fit pass; and stops what is broken."""
    service.json("family", "create", "whole", "--hook-point", "resid_post.1", *FIT)
    code, first = gate(service, releases, "v1", f"{planted}/v1")
    assert (code, first["gate"]["failures"], first["report"]["fitted_fvu"]) == (0, [], None)
    code, second = gate(service, releases, "v2", f"{planted}/v2", "--parent", "v1")
    report = second["report"]
    assert (code, second["gate"]["failures"]) == (0, [])
    assert second["run"]["result"]["places"] == {word: n for word, n in report["places"].items() if n}, (
        "as in the event"
    )
    assert report["fitted_fvu"] == first["report"]["quality"]["fvu"]
    assert report["new_counts"]["absent"] == report["counts"]["absent"] > 0
    code, third = gate(service, releases, "v3", f"{planted}/v2", "--parent", "v2")
    assert (code, third["gate"]["failures"]) == (0, [])
    assert third["report"]["counts"]["absent"] > third["report"]["new_counts"]["absent"] == 0, "already gone before"
    code, again = gate(service, releases, "again", f"{planted}/v2", "--parent", "v1", "--fit", "refit")
    assert (code, again["gate"]["failures"], again["report"]["fitted_fvu"]) == (0, [], None)
    assert again["report"]["refit"]["carried"] > 30

    code, answer = gate(service, releases, "untrained", f"{planted}/untrained", "--parent", "v1")
    assert code == 1
    failed = {rule["rule"]: rule for rule in answer["gate"]["rules"] if not rule["passed"]}
    assert set(failed) == {"shares.indeterminate", "dictionary.refit_advised", "dictionary.fvu_ratio", "quality.fvu"}
    assert re.match(r"(\d+) of \1 existing features cannot be judged \(100%, 95% CI lower bound 9\d%\); "
                    "the limit is 30%", failed["shares.indeterminate"]["failure"])  # fmt: skip
    assert any(
        "not readable by the checkpoint's own encoder" in text for text in failed["shares.indeterminate"]["evidence"]
    )
    assert "A re-fit is advised." in failed["dictionary.refit_advised"]["evidence"][0]
    page = (releases / "untrained.md").read_text(encoding="utf-8")
    cases = ElementTree.parse(releases / "untrained.xml").getroot().iter("testcase")
    broken = {case.get("name", "").partition(":")[0] for case in cases if case.find("failure") is not None}
    assert broken == set(failed)
    for rule in failed.values():
        assert rule["failure"] in page
    done = service.run("checkpoint", "register", "whole", "untrained", f"activations+file://{planted}/untrained",
                       "--parent", "v1", "--gate", "default")  # fmt: skip
    assert done.returncode == 1 and f"shares.indeterminate: {failed['shares.indeterminate']['failure']}" in done.stdout

    code, answer = gate(service, releases, "misread", f"{planted}/misread", "--parent", "v1")
    failed = {rule["rule"] for rule in answer["gate"]["rules"] if not rule["passed"]}
    assert (code, failed) == (1, {"shares.indeterminate"}), "its dictionary fits as well as ever, by new features"
    assert answer["report"]["counts"]["emerged"] > 20


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("github-actions", "action.yml"),
        ("github-workflows", ".github/workflows/ci.yml"),
        ("gitlab-ci", "deploy/gitlab/featurewatch.yml"),
    ],
)
def test_the_files_are_what_the_runners_read(schema: str, file: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(ROOT / file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_guide_names_what_they_take() -> None:
    steps, jobs = (
        yaml.safe_load(block.text) for block in blocks(ROOT / "docs/guide-ci.md", frozenset()) if block.kind == "yaml"
    )
    inputs = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))["inputs"]
    given = next(step["with"] for step in steps if step.get("id") == "features")
    assert {name for name, about in inputs.items() if about.get("required")} <= set(given) <= set(inputs)
    job = yaml.safe_load((ROOT / "deploy/gitlab/featurewatch.yml").read_text(encoding="utf-8"))[".featurewatch"]
    read = set(re.findall(r"\$\{?([A-Z_]+)", "".join([*job["before_script"], *job["script"]])))
    assert set(jobs["features"]["variables"]) | set(job["variables"]) <= read
    assert {name.upper() for name in inputs} - read == {"URL", "KEY", "JUNIT", "SUMMARY", "INSTALL"}, (
        "elsewhere, or fixed"
    )


def test_the_action_installs_its_own_version(tmp_path: Path, checkout: Path, bare: dict[str, str]) -> None:
    """And what that needs, by the lock, into an environment of its own."""
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    step = action["runs"]["steps"][0]
    make_environment(tmp_path / "featurewatch")  # which the step makes again, and keeps what is in it
    files = {"GITHUB_ACTION_PATH": str(checkout), "RUNNER_TEMP": str(tmp_path), "GITHUB_PATH": str(tmp_path / "path")}
    done = bash(step["run"], tmp_path, bare | files)
    assert done.returncode == 0, done.stderr
    home = tmp_path / "featurewatch"
    assert (tmp_path / "path").read_text(encoding="utf-8") == f"{home}/bin\n"
    assert (home / "bin" / "featurewatch").exists()
    assert list(home.glob("lib/python*/site-packages/featurewatch/service/cli/gate/rules.py"))
    lock = checkout / "requirements" / "base.lock"
    text = lock.read_text(encoding="utf-8")
    lock.write_text(re.sub(r"^alembic==[\d.]+", "alembic==0.0.1", text, flags=re.M), encoding="utf-8")
    done = bash(step["run"], tmp_path, bare | files)
    lock.write_text(text, encoding="utf-8")
    assert done.returncode != 0 and "alembic==0.0.1" in done.stderr, "what is not in the lock is not good enough"


def test_the_gitlab_job(gated: Up, planted: Path, tmp_path: Path, checkout: Path, bare: dict[str, str]) -> None:
    job = yaml.safe_load((ROOT / "deploy/gitlab/featurewatch.yml").read_text(encoding="utf-8"))[".featurewatch"]
    script = "\n".join([*job["before_script"], *job["script"]])
    uri = f"activations+file://{planted}/v2"
    variables = bare | job["variables"] | {"FAMILY": "gated", "CHECKPOINT": "v2", "URI": uri, "PARENT": "v1"}
    lock = checkout / "requirements" / "base.lock"
    variables |= {"FEATUREWATCH_PACKAGE": str(checkout), "FEATUREWATCH_LOCK": str(lock), "FEATUREWATCH_URL": gated.url}
    default = job["variables"]
    assert default["FEATUREWATCH_PACKAGE"].endswith(f"/featurewatch/archive/refs/tags/v{__version__}.tar.gz")
    assert default["FEATUREWATCH_LOCK"].endswith(f"/featurewatch/v{__version__}/requirements/base.lock")
    (tmp_path / "lenient.toml").write_text("[counts]\nabsent = 40\n", encoding="utf-8")
    done = bash(script, tmp_path, variables | {"GATE": "lenient.toml"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "job" / "bin" / "featurewatch").exists(), "the job has installed it, and run that"
    reports = job["artifacts"]["reports"]
    assert lines_of(tmp_path / reports["dotenv"])["status"] == "passed"
    assert ElementTree.parse(tmp_path / reports["junit"]).getroot().get("tests") == "1"
    assert "passed its gate" in (tmp_path / job["artifacts"]["paths"][0]).read_text(encoding="utf-8")

    done = bash(script, tmp_path, variables | {"FEATUREWATCH_URL": f"http://127.0.0.1:{free_port()}"})
    assert done.returncode == 3, done.stderr
    assert lines_of(tmp_path / reports["dotenv"])["status"] == "error"
    suite = ElementTree.parse(tmp_path / reports["junit"]).getroot()
    assert suite.get("errors") == "1"
    assert "does not respond" in (suite.findtext(".//error") or "")


def test_both_name_an_adapter(gated: Up, planted: Path, tmp_path: Path, path: str) -> None:
    """The adapter reaches the service, which rejects one for activations."""
    steps = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))["runs"]["steps"]
    step = next(step for step in steps if step.get("id") == "gate")
    uri, adapter = f"activations+file://{planted}/v2", "hf://org/adapter"
    inputs = {"url": gated.url, "family": "gated", "checkpoint": "v4", "uri": uri, "adapter": adapter}
    job = yaml.safe_load((ROOT / "deploy/gitlab/featurewatch.yml").read_text(encoding="utf-8"))[".featurewatch"]
    variables = job["variables"] | {"FAMILY": "gated", "CHECKPOINT": "v4", "URI": uri, "ADAPTER": adapter, "PATH": path}
    done = github(step, inputs, tmp_path, path)
    assert (done.returncode, "An adapter needs a model" in done.stderr) == (2, True), done.stderr
    done = bash("\n".join(job["script"]), tmp_path, variables | {"FEATUREWATCH_URL": gated.url})
    assert (done.returncode, "An adapter needs a model" in done.stderr) == (2, True), done.stderr


def test_what_cannot_be_told_is_said_first(gated: Up, planted: Path, tmp_path: Path) -> None:
    register = ["checkpoint", "register", "gated", "v3", f"activations+file://{planted}/v2"]
    done = gated.run(*register, "--wait", "--junit", str(tmp_path / "x.xml"))
    assert (done.returncode, "--gate" in done.stderr) == (2, True)
    done = gated.run(*register, "--summary", str(tmp_path / "x.md"))
    assert (done.returncode, "--wait" in done.stderr) == (2, True)
    (tmp_path / "file").touch()
    done = gated.run(*register, "--gate", "default", "--summary", str(tmp_path / "file" / "x.md"))
    assert (done.returncode, "cannot write" in done.stderr) == (2, True)
    assert [row["name"] for row in gated.json("checkpoint", "list", "gated")] == ["v1", "v2"], "nothing was registered"


def test_places_break_a_gate(filled_url: str, tmp_path: Path) -> None:
    """In v2, F0 became active in new places. It has the tag deception, and nobody watches it."""

    def failures(text: str, *, watched: bool = False) -> dict[str, str]:
        (tmp_path / "gate.toml").write_text(text, encoding="utf-8")
        gate = policy.load(str(tmp_path / "gate.toml")) if text else policy.DEFAULT
        with Client(filled_url) as client:
            client.update_feature("smol", "F0", watched=watched)
            outcomes = list(rules.outcomes(gate, client, "smol", client.checkpoint("smol", "v2")))
            client.update_feature("smol", "F0", watched=False)
        assert all(bool(one.evidence) is not one.passed for one in outcomes if "places" in one.rule)
        return {one.rule: one.failure for one in outcomes if not one.passed}

    assert failures("[places]\nbroadened = 0\nnarrowed = 0") == {
        "places.broadened": "1 feature is broadened; at most 0 allowed: F0"
    }
    assert failures("[places]\nbroadened = 1") == {}
    assert failures('[watched]\nplaces = ["broadened"]') == {}
    assert failures('[watched]\nplaces = ["broadened"]', watched=True) == {
        "watched.places": "1 watched feature is broadened: F0"
    }
    assert failures('[tags.deception]\nplaces = ["displaced", "broadened"]\n[tags.other]\nplaces = ["broadened"]') == {
        "tags.deception.places": "1 feature tagged deception is broadened: F0"
    }
    default = failures("")
    assert default["tagged.places"] == "1 tagged feature is broadened: F0"
    assert "watched.places" not in default and "watched.places" in failures("", watched=True)
    with Client(filled_url) as client:
        client.update_feature("smol", "F0", tags=[])
        assert "tagged.places" not in failures("")
        client.update_feature("smol", "F0", tags=["deception"])
    with pytest.raises(UsageError, match=r"watched\.places\.0"):
        failures('[watched]\nplaces = ["absent"]')


def test_the_evidence_of_places_says_where(filled_url: str) -> None:
    with Client(filled_url) as client:
        checkpoint = client.checkpoint("smol", "v2")
        (outcome,) = rules.outcomes(policy.Gate(places={"broadened": 0}), client, "smol", checkpoint)
    assert outcome.asked == "at most 0 features are broadened"
    (sentence,) = outcome.evidence
    assert "F0" in sentence and "active in new places: its firing rate is 3 times" in sentence
