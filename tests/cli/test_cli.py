"""The `featurewatch` command, against an embedded service in processes of its own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import scipy.sparse

from featurewatch import service
from tests.cli.live import FIT, SHAPE, Up, command, within
from tests.processes import alive
from tests.services import free_port, wait_until

STRICT = "[counts]\nsuppressed = 0\nabsent = 0\nreplaced = 0\n"
LENIENT = "[counts]\nsuppressed = 40\nabsent = 40\n[quality]\nfvu = 1.0\n"


def test_from_registration_to_the_gate(service: Up, planted: Path, tmp_path: Path) -> None:
    family = service.json("family", "create", "toy", "--hook-point", "resid_post.1", *FIT)
    assert family["crosscoder"]["n_features"] == 40
    first = service.run("checkpoint", "register", "toy", "v1", f"activations+file://{planted}/v1", "--wait")
    assert first.returncode == 0, first.stderr
    assert "v1 of toy is judged" in first.stdout
    assert "\x1b[" not in first.stdout + first.stderr, "colours are for terminals"
    rule = service.json("alert", "rule", "create", "loss", "--status", "absent", "--at-least", "1", "--family", "toy")
    assert rule["condition"] == {"kind": "status_count", "status": "absent", "at_least": 1}

    (tmp_path / "strict.toml").write_text(STRICT)
    gate = ["checkpoint", "register", "toy", "v2", f"activations+file://{planted}/v2", "--parent", "v1", "--json"]
    second = service.run(*gate, "--gate", str(tmp_path / "strict.toml"))
    answer = json.loads(second.stdout)
    assert second.returncode == 1, second.stderr
    assert answer["gate"]["passed"] is False
    assert any("absent" in reason for reason in answer["gate"]["failures"])
    lost = {status: answer["report"]["counts"][status] for status in ("suppressed", "absent", "replaced")}
    assert lost["absent"] >= 1

    # The same registration again is the same run, and another gate lets it pass.
    (tmp_path / "lenient.toml").write_text(LENIENT)
    third = service.run(*gate, "--gate", str(tmp_path / "lenient.toml"))
    assert third.returncode == 0, third.stderr
    assert json.loads(third.stdout)["run"]["id"] == answer["run"]["id"]

    _read_back(service, lost, tmp_path)


def _in_words(service: Up, watched: str, absent: set[str]) -> None:
    """The report and the comparison say the same, the watched feature first."""
    answer = service.json("diff", "toy", "v1", "v2", "--status", "absent")
    assert {row["id"] for row in answer["data"]} == absent
    assert answer["findings"][0]["feature"]["id"] == watched
    report = service.json("report", "toy", "v2")
    assert report["findings"][0] == answer["findings"][0]
    lines = service.run("report", "toy", "v2").stdout.splitlines()
    assert lines[0] == "toy: v2 against v1" and lines[1] == report["headline"]
    assert next(line for line in lines if line.startswith("F")).split()[:2] == [watched, "absent"]
    assert "watched  “what v2 lost”" in next(line for line in lines if line.startswith("F"))
    listed = service.run("diff", "toy", "v1", "v2", "--status", "absent").stdout
    assert "FEATURE" in listed and listed.splitlines()[0] == lines[0]
    strict = service.json("report", "toy", "v2", "--max-q", "0", "--min-change", "6")
    assert strict["changed"] < report["changed"] and "match the filter" in strict["headline"]
    assert "q_value" in service.json("features", "toy", "--sort", "q_value", "--max-q", "0.05")[0]


def _read_back(service: Up, lost: dict[str, int], tmp_path: Path) -> None:
    rows = service.json("features", "toy", "--checkpoint", "v2", "--status", "absent", "--limit", "0")
    assert len(rows) == lost["absent"]
    one = rows[0]["id"]
    named = service.json("feature", "toy", one, "--label", "what v2 lost", "--tag", "lost", "--watch")
    assert named["feature"]["watched"]
    assert [point["checkpoint"] for point in named["trajectory"]] == ["v1", "v2"]
    assert [row["id"] for row in service.json("features", "toy", "--tag", "lost")] == [one]
    listed = service.run("features", "toy", "--status", "absent")
    assert listed.stdout.splitlines()[0].split()[:2] == ["FEATURE", "STATUS"]
    assert "what v2 lost" in listed.stdout
    _in_words(service, one, {row["id"] for row in rows})
    assert service.run("report", "toy", "v2", "--format", "html").stdout.lstrip().startswith("<!")
    made = service.json("export", "codes", "toy", "-o", str(tmp_path / "codes.npz"))
    codes = scipy.sparse.load_npz(tmp_path / "codes.npz")
    assert codes.shape == (SHAPE["n_positions"], made["features"])
    assert one in (tmp_path / "codes.ids.txt").read_text().split()
    assert [alert["checkpoint"] for alert in service.json("alert", "list", "--family", "toy")] == ["v2"]
    states = {run["checkpoint"]: run["state"] for run in service.json("run", "list", "--family", "toy")}
    assert states == {"v1": "succeeded", "v2": "succeeded"}


def test_activations_without_text_cannot_be_labelled(service: Up) -> None:
    done = service.run("label", "toy")
    assert done.returncode == 2
    assert "toy has no text to label" in done.stderr


def test_features_are_exported_for_viewers(service: Up, tmp_path: Path) -> None:
    made = service.json("export", "neuronpedia", "toy", "--checkpoint", "v2", "--out", str(tmp_path / "np"))
    files = sorted((tmp_path / "np").glob("*.json"), key=lambda path: int(path.stem))
    assert made["features"] == len(files) >= 40
    first = json.loads(files[0].read_text(encoding="utf-8"))
    assert (first["modelId"], first["layer"], first["index"]) == ("v2", "1-resid_post-toy", files[0].stem)


def test_a_family_is_calibrated(service: Up, planted: Path) -> None:
    service.json("family", "create", "quiet", "--hook-point", "resid_post.1", *FIT)
    nothing = service.run("calibrate", "quiet")
    assert nothing.returncode == 2
    assert "judged" in nothing.stderr
    done = service.run("checkpoint", "register", "quiet", "v1", f"activations+file://{planted}/v1", "--wait")
    assert done.returncode == 0, done.stderr
    later = service.run("calibrate", "quiet", "--null", "repeat", "--no-wait")
    assert later.returncode == 0, later.stderr
    assert service.json("run", "list", "--family", "quiet")[0]["id"] in later.stdout
    shown = service.run("calibrate", "quiet", "--null", "halves", "--null", "finetune", "--splits", "3")
    assert shown.returncode == 0, shown.stderr
    halves = next(line.split() for line in shown.stdout.splitlines() if line.startswith("halves"))
    assert halves[1:4] == ["0", "of", "3"]
    assert "finetune: not available" in shown.stderr
    assert "the family's" in shown.stdout
    answer = service.json("calibrate", "quiet", "--null", "int8")
    assert (answer["state"], answer["checkpoint"], answer["result"]["features"]["alarms"]) == ("succeeded", "v1", 0)
    assert service.json("family", "show", "quiet")["calibration"]["id"] == answer["id"]
    assert service.run("calibrate", "quiet", "--null", "finetune").returncode == 1


def test_a_checkpoint_that_waits_for_the_first_fit(service: Up, planted: Path) -> None:
    service.json("family", "create", "later", "--hook-point", "resid_post.1", *FIT)
    register = ["checkpoint", "register", "later", "v1", f"activations+file://{planted}/v1", "--fit", "later"]
    gated = service.run(*register, "--gate", "default")
    assert gated.returncode == 2
    assert "--gate cannot be combined with --fit later" in gated.stderr
    done = service.run(*register, "--wait")
    assert (done.returncode, done.stdout.strip()) == (0, "v1 of later has been read and waits for the first fit"), (
        done.stderr
    )
    assert "No re-fits yet." in service.run("lineage", "later").stderr
    assert service.json("lineage", "later", "--kind", "split") == []


def test_errors_say_what_to_do(service: Up, tmp_path: Path) -> None:
    done = service.run("family", "show", "nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing" in done.stderr
    done = service.run("family", "create", "bad name!", "--hook-point", "layer12")
    assert done.returncode == 2
    assert "resid_post.12" in done.stderr
    done = service.run("checkpoint", "register", "x", "v1", "file:///etc", "--gate", str(tmp_path / "none.toml"))
    assert done.returncode == 2
    assert "none.toml" in done.stderr
    (tmp_path / "bad.toml").write_text("[counts]\nsupressed = 0\n")
    done = service.run("checkpoint", "register", "x", "v1", "file:///etc", "--gate", str(tmp_path / "bad.toml"))
    assert done.returncode == 2
    assert "supressed" in done.stderr
    assert service.run("no-such-command").returncode == 2
    done = service.run("label", "nothing", "F1")
    assert done.returncode == 2
    assert "nothing" in done.stderr
    done = service.run("webhook", "create", "http://127.0.0.1:9/x")
    assert done.returncode == 2
    assert "FEATUREWATCH_WEBHOOK_ALLOW" in done.stderr


def test_webhooks_and_rules_of_every_kind(service: Up) -> None:
    hook = service.json(
        "webhook", "create", "https://hooks.example.com/x", "--event", "run.failed", "--format", "slack"
    )
    assert (hook["format"], hook["enabled"]) == ("slack", True)
    turned = service.json("webhook", "rotate", hook["id"], "--hours", "2")
    assert turned["secret"] != hook["secret"]
    assert turned["old_secret_until"] is not None
    assert service.json("webhook", "enable", hook["id"])["enabled"]
    assert service.run("webhook", "delete", hook["id"]).returncode == 0
    for options, condition in [
        (["--fvu", "0.4", "--fvu-ratio", "2"], {"kind": "quality", "max_fvu": 0.4, "max_fvu_ratio": 2.0}),
        (["--run-failed", "onboard"], {"kind": "run_failed", "runs": ["onboard"], "at_least": 1}),
        (["--run-failed", "any", "--at-least", "3"], {"kind": "run_failed", "runs": [], "at_least": 3}),
        (["--silent-days", "7"], {"kind": "absence", "days": 7.0}),
    ]:
        made = service.json("alert", "rule", "create", "r", *options)
        assert made["condition"] == condition
        assert service.run("alert", "rule", "delete", made["id"]).returncode == 0
    for options in (["--silent-days", "7", "--status", "absent"], ["--watched", "--at-least", "2"], []):
        assert service.run("alert", "rule", "create", "r", *options).returncode == 2
    assert service.json("alert", "list", "--kind", "webhook_paused") == []
    done = service.run("alert", "resolve", "alt_none")
    assert (done.returncode, "alt_none" in done.stderr) == (2, True)


def test_a_rule_is_created_by_its_kind(service: Up) -> None:
    create = ("alert", "rule", "create")
    statuses = ["suppressed", "absent", "replaced", "relocated", "amplified"]
    for options, condition in [
        (["tag", "r", "--tag", "deception", "--status", "absent"],
         {"kind": "tag", "tag": "deception", "statuses": ["absent"]}),
        (["status-count", "r", "--status", "absent", "--at-least", "3"],
         {"kind": "status_count", "status": "absent", "at_least": 3}),
        (["places", "r", "--tag", "deception", "--places", "broadened", "--places", "displaced"],
         {"kind": "places", "feature": None, "tag": "deception", "places": ["broadened", "displaced"]}),
        (["rewired", "r"], {"kind": "rewired", "feature": None}),
        (["quality", "r", "--max-fvu", "0.4"], {"kind": "quality", "max_fvu": 0.4, "max_fvu_ratio": None}),
        (["run-failed", "--run", "onboard", "--run", "label", "r"],
         {"kind": "run_failed", "runs": ["onboard", "label"], "at_least": 1}),
        (["absence", "r", "--days", "7"], {"kind": "absence", "days": 7.0}),
        (["watched", "r"], {"kind": "watched", "statuses": statuses}),
    ]:  # fmt: skip
        rule = service.json(*create, *options)
        assert (rule["name"], rule["condition"]) == ("r", condition)
        assert service.run("alert", "rule", "delete", rule["id"]).returncode == 0
    for options in (
        ["absence", "r"],
        ["watched", "r", "--days", "7"],
        ["watched"],
        ["quality", "r"],
        ["places", "r", "--tag", "a", "--feature", "F1"],
    ):
        assert service.run(*create, *options).returncode == 2, options
    deprecated = service.run(*create, "--family", "toy", "tag", "--tag", "lost or found")
    assert "create tag tag --family toy --tag 'lost or found'" in deprecated.stderr, "a rule that is named like a kind"


def test_nothing_answers() -> None:
    done = command("--url", f"http://127.0.0.1:{free_port()}", "family", "list")
    assert done.returncode == 3
    assert "featurewatch up" in done.stderr


def test_a_timeout_has_its_own_exit_code(planted: Path, tmp_path: Path) -> None:
    up = Up(tmp_path, "--no-worker", "--root", str(planted))
    try:
        up.json("family", "create", "toy", "--hook-point", "resid_post.1")
        uri = f"activations+file://{planted}/v1"
        done = up.run("checkpoint", "register", "toy", "v1", uri, "--wait", "--timeout", "0.5")
        assert done.returncode == 3
        run = up.json("run", "list")[0]
        assert run["id"] in done.stderr
        assert up.run("run", "cancel", run["id"]).returncode == 0
        assert up.run("run", "wait", run["id"]).returncode == 1, "a cancelled run has not succeeded"
    finally:
        assert up.stop() == 0


def test_all_that_the_service_and_its_worker_keep_is_private(service: Up) -> None:
    folder = Path(service.where["data_dir"])
    paths = [folder, *folder.rglob("*")]
    assert {"featurewatch.db", "secret.key"} <= {path.name for path in paths}
    assert [path for path in paths if path.stat().st_mode & 0o077] == []


def test_an_open_address_needs_a_key(tmp_path: Path) -> None:
    refused = command("up", "--host", "0.0.0.0", "--port", "0", "--data-dir", str(tmp_path / "data"), "--no-worker")
    assert refused.returncode == 2
    assert "featurewatch key create" in refused.stderr
    data = {"FEATUREWATCH_DATA_DIR": str(tmp_path / "data")}
    expired = within("key", "create", "old", "--days", "0", env=data)
    assert expired.returncode == 0
    again = command("up", "--host", "0.0.0.0", "--port", "0", "--data-dir", str(tmp_path / "data"), "--no-worker")
    assert again.returncode == 2, "a key that has expired opens nothing"
    made = within("key", "create", "ci", "--scope", "read", "--days", "1", "--json", env=data)
    key = json.loads(made.stdout)["key"]
    admin = json.loads(within("key", "create", "admin", "--scope", "admin", "--json", env=data).stdout)["key"]
    up = Up(tmp_path, "--host", "0.0.0.0", "--no-worker")
    try:
        without = up.run("family", "list")
        assert without.returncode == 2
        assert "FEATUREWATCH_KEY" in without.stderr
        assert up.run("family", "list", env={"FEATUREWATCH_KEY": key}).returncode == 0
        writing = ["family", "create", "x", "--hook-point", "resid_post.1"]
        assert "scope" in up.run(*writing, env={"FEATUREWATCH_KEY": key}).stderr
        listed = json.loads(within("key", "list", "--json", env=data).stdout)
        assert [row["name"] for row in listed] == ["admin", "ci", "old"]
        assert listed[1]["expires_at"] > listed[1]["created_at"]
        assert key not in json.dumps(listed)
        assert within("key", "revoke", listed[1]["id"], env=data).returncode == 0
        assert up.run("family", "list", env={"FEATUREWATCH_KEY": key}).returncode == 2
        written = json.loads(up.run("audit", "--json", env={"FEATUREWATCH_KEY": admin}).stdout)
        assert [(row["actor"], row["method"]) for row in written] == [("server", "DELETE")] + [("server", "POST")] * 3
        assert written[0]["path"] == f"/v1/keys/{listed[1]['id']}"
    finally:
        up.stop()


def test_a_port_in_use_is_told(service: Up, tmp_path: Path) -> None:
    done = command("up", "--port", service.url.rpartition(":")[2], "--data-dir", str(tmp_path), "--no-worker")
    assert done.returncode == 2
    assert "--port 0" in done.stderr


def test_the_worker_is_started_again_and_ends_with_the_service(tmp_path: Path) -> None:
    up = Up(tmp_path)
    try:
        first = up.where["worker"]
        os.kill(first, signal.SIGKILL)
        assert wait_until(lambda: bool(_workers(up) - {first}), 20), up.log.read_text()
        second = (_workers(up) - {first}).pop()
        up.process.kill()  # it can end nothing any more
        up.process.wait()
        assert wait_until(lambda: not alive(second), 20), "the worker outlives the service"
    finally:
        up.stop()


def _workers(up: Up) -> set[int]:
    """Children of the service that run."""
    pids = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return {pid for pid in pids if _parent(pid) == up.process.pid and alive(pid)}


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def test_the_database_can_be_checked_and_upgraded(database_url: str, tmp_path: Path) -> None:
    env = {"FEATUREWATCH_DATABASE_URL": database_url, "FEATUREWATCH_DATA_DIR": str(tmp_path / "data")}
    assert within("db", "check", env=env).returncode == 0
    assert within("db", "upgrade", env=env).returncode == 0
    empty = {"FEATUREWATCH_DATABASE_URL": f"sqlite:///{tmp_path}/empty.db"}
    done = within("db", "check", env=empty)
    assert done.returncode == 2
    assert "featurewatch db upgrade" in done.stderr


def test_the_version_is_that_of_the_package() -> None:
    assert command("--version").stdout.split() == ["featurewatch", service.__version__]


def test_the_demo_gets_its_options() -> None:
    done = command("demo", "--help")
    assert done.returncode == 0, done.stderr
    assert "--keep" in done.stdout


def test_the_command_starts_without_the_server() -> None:
    """A shell that completes names, and a CI job that asks often, wait for what is imported."""
    heavy = "{'fastapi', 'sqlalchemy', 'scipy', 'jinja2', 'torch', 'pandas', 'pyarrow'}"
    script = f"import sys, featurewatch.service.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
