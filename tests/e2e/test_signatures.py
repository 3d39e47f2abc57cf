"""Signatures from the command line to the gate: a concept that the second checkpoint lost."""

import json
from pathlib import Path

import pytest

from benchmarks.planted_data import HOOK_POINT, make_lineage
from featurewatch.service.cli.gate import policy as gate
from featurewatch.service.client import ApiError
from tests.cli.live import command
from tests.e2e.parts import ONE_DATABASE, Service
from tests.workers.test_signature import FIT, SHAPE, positions_of, write


@ONE_DATABASE
def test_a_lost_concept_fails_the_gate(service: Service, tmp_path: Path) -> None:
    lineage, folder = make_lineage(1, **SHAPE), service.folder / "signatures"
    folder.mkdir(exist_ok=True)
    name = f"signed-{tmp_path.name}"
    positions, rows = positions_of(lineage, gone=True)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    uris = [write(lineage, number, folder / f"{name}-{number}", {"lost": positions}) for number in (1, 2)]
    service.client.create_family(name, [HOOK_POINT], crosscoder=FIT)
    service.judge(name, "v1", uris[0])
    at = {"FEATUREWATCH_URL": service.client.url}
    made = command("signature", "create", name, "lost", str(tmp_path / "rows.jsonl"), env=at)
    assert made.returncode == 0, made.stderr
    assert "present" in made.stdout
    rule = command("alert", "rule", "create", "loss", "--family", name, "--signature", "any", "--json", env=at)
    assert json.loads(rule.stdout)["condition"]["kind"] == "signature"
    register = ["checkpoint", "register", name, "v2", uris[1], "--gate", "default"]
    done = command(*register, env=at)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "signature lost is absent" in done.stdout
    assert "signature lost became absent" in done.stdout
    assert "open alert" in done.stdout
    shown = command("signature", "show", name, "lost", env=at)
    assert "It turns at v2." in shown.stderr
    alert = next(service.client.alerts(family=name))
    assert alert["summary"] == "v2: signature lost absent"
    listed = command("signature", "list", name, "--json", env=at)
    assert [(one["name"], one["newest"]["status"]) for one in json.loads(listed.stdout)] == [("lost", "absent")]
    assert command("signature", "delete", name, "lost", "--yes", env=at).returncode == 0
    with pytest.raises(ApiError):
        service.client.signature(name, "lost")


def test_a_gate_names_statuses_of_signatures(tmp_path: Path) -> None:
    file = tmp_path / "gate.toml"
    file.write_text('[signatures]\nnever = ["absent"]\n')
    assert gate.load(str(file)).signatures.never == ["absent"]
    file.write_text('[signatures]\nnever = ["relocated"]\n')
    with pytest.raises(gate.UsageError, match="signatures"):
        gate.load(str(file))
