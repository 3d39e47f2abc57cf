"""Signatures read by a real worker: precomputed contrast activations of planted lineages, and a tiny model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.planted_data import HOOK_POINT, Lineage, make_lineage, write_checkpoint
from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.checkpoints.schemas import CheckpointIn
from featurewatch.service.families import logic as families
from featurewatch.service.families.schemas import FamilyIn
from featurewatch.service.models import Checkpoint, Reading, Run, Signature
from featurewatch.service.signatures import logic
from featurewatch.service.signatures.schemas import SignatureIn
from featurewatch.workers.pipelines import PIPELINES
from tests.unit.activations.tiny import TEXTS, save_checkpoint
from tests.workers.conftest import Installation

torch.set_num_threads(1)

SHAPE = {
    "n_checkpoints": 2, "n_positions": 5000, "width": 32, "n_planted": 24, "n_suppressed": 0, "n_removed": 3,
    "n_born": 0, "lowest_rate": 0.03,
}  # fmt: skip
FIT = {"n_features": 32, "k": 3, "steps": 250, "batch_size": 256, "learning_rate": 0.005}


def run_next(installation: Installation, kind: str) -> Run:
    """The run whose turn it is, taken to its end."""
    run_id = installation.run_next(pipelines=PIPELINES)
    assert run_id
    run = installation.run(run_id)
    assert run.kind == kind
    return run


def register(installation: Installation, name: str, uri: str) -> None:
    with installation.database.write() as session:
        family = families.get(session, "planted")
        checkpoints.register(session, installation.settings, family, CheckpointIn(name=name, uri=uri))
    done = run_next(installation, "onboard")
    assert done.state == "succeeded", done.error


def positions_of(lineage: Lineage, gone: bool) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Positions where one of three features fires, and as many where none of them does: a contrast set's rows."""
    removed = [event.feature for event in lineage.events if event.kind == "removed"]
    kept = [f for f in range(lineage.shape.n_planted) if f not in removed]
    fires = (lineage.codes[:, removed if gone else kept[:3]] > 0).sum(1) > 0
    rng = np.random.default_rng(0)
    rows = np.sort(np.concatenate([rng.permutation(np.flatnonzero(fires == side))[:80] for side in (True, False)]))
    return rows, [{"text": f"position {row}", "label": bool(fires[row])} for row in rows]


def write(lineage: Lineage, checkpoint: int, folder: Path, sets: dict[str, np.ndarray]) -> str:
    """A checkpoint with the activations of some contrast sets; its URI."""
    write_checkpoint(lineage, checkpoint, folder)
    (folder / "contrast").mkdir()
    for name, rows in sets.items():
        x = torch.from_numpy(lineage.activations(checkpoint)[rows])
        save_file({HOOK_POINT: x}, folder / "contrast" / f"{name}.safetensors")
    return f"activations+{folder.as_uri()}"


def create(installation: Installation, name: str, rows: list[dict[str, Any]], **body: Any) -> list[str]:
    with installation.database.write() as session:
        asked = SignatureIn.model_validate({"name": name, "rows": rows} | body)
        family = families.get(session, "planted")
        made = logic.create(session, installation.settings, installation.artifacts, family, asked)
        return [run.id for run, _ in made[1]]


def readings(installation: Installation) -> dict[tuple[str, str], Reading]:
    with installation.database.read() as session:
        found = session.query(Reading, Signature.name, Checkpoint.name).join(
            Signature, Signature.id == Reading.signature_id
        ).join(Checkpoint, Checkpoint.id == Reading.checkpoint_id)  # fmt: skip
        return {(name, at): row for row, name, at in found}


@pytest.fixture
def planted(installation: Installation) -> Lineage:
    with installation.database.write() as session:
        body = {"name": "planted", "hook_points": [HOOK_POINT], "crosscoder": FIT}
        families.create(session, installation.settings, FamilyIn.model_validate(body))
    return make_lineage(1, **SHAPE)


def test_what_is_removed_is_said_and_what_stays_is_present(
    installation: Installation, planted: Lineage, tmp_path: Path
) -> None:
    sets = {name: positions_of(planted, name == "gone") for name in ("gone", "kept")}
    rows = {name: found[0] for name, found in sets.items()}
    register(installation, "v1", write(planted, 1, tmp_path / "v1", rows))
    for name, found in sets.items():
        create(installation, name, found[1])
        assert run_next(installation, "signature").state == "succeeded"
    # From now on every new checkpoint is read without being asked, one run for all signatures.
    register(installation, "v2", write(planted, 2, tmp_path / "v2", rows))
    done = run_next(installation, "signature")
    assert done.result is not None
    assert done.result["signatures"] == {"gone": "absent", "kept": "present"}
    found = readings(installation)
    assert {row.status for (_, at), row in found.items() if at == "v1"} == {"present"}
    kept, gone = found["kept", "v2"].figures, found["gone", "v2"].figures
    assert kept["strength_ratio"] == pytest.approx(1, abs=0.12)
    assert abs(gone["strength_ratio"]) < 0.15
    assert gone["change"] == pytest.approx(gone["strength_ratio"])
    assert kept["auroc"] > 0.9 > gone["reselected_auroc"]
    assert kept["random_auroc"] < 0.75
    assert found["gone", "v2"].previous_status == "present"


def test_a_killed_run_goes_on_and_reads_the_same(installation: Installation, planted: Lineage, tmp_path: Path) -> None:
    positions, rows = positions_of(planted, gone=False)
    register(installation, "v1", write(planted, 1, tmp_path / "v1", {"kept": positions}))
    create(installation, "kept", rows)
    stopped = installation.run_next(pipelines=PIPELINES, stop=lambda: True)
    assert stopped
    assert installation.run(stopped).state == "queued"
    assert run_next(installation, "signature").state == "succeeded"
    first = readings(installation)["kept", "v1"].figures
    create(installation, "again", rows)
    failed = run_next(installation, "signature")
    assert (failed.state, failed.error and failed.error["code"]) == ("failed", "contrast-not-brought")
    (tmp_path / "v1/contrast/kept.safetensors").rename(tmp_path / "v1/contrast/again.safetensors")
    create(installation, "again2", rows)  # another name, another file
    assert run_next(installation, "signature").state == "failed"
    assert readings(installation)["kept", "v1"].figures == first


def test_a_later_baseline_is_read_first(installation: Installation, planted: Lineage, tmp_path: Path) -> None:
    positions, rows = positions_of(planted, gone=False)
    for number in (1, 2):
        uri = write(planted, number, tmp_path / f"v{number}", {"kept": positions} if number == 1 else {})
        register(installation, f"v{number}", uri)
    create(installation, "kept", rows)
    runs = [run_next(installation, "signature") for _ in range(2)]
    assert [run.error and run.error["code"] for run in runs] == ["contrast-not-brought", "nothing-to-read"]
    assert "its baseline v2 has not been read" in str(runs[1].error)


def test_a_model_is_read_through_its_own_tokens(installation: Installation, tmp_path: Path) -> None:
    """Of a random model nothing is to be expected, but that it is read at its hook points, as the rows say."""
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 8))
    with installation.database.write() as session:
        body = {
            "name": "planted", "hook_points": ["resid_post.0", "resid_post.2"], "crosscoder": FIT | {"steps": 20},
            "corpus": {"uri": (tmp_path / "corpus.jsonl").as_uri()},
        }  # fmt: skip
        families.create(session, installation.settings, FamilyIn.model_validate(body))
    register(installation, "v1", save_checkpoint(tmp_path / "llama").as_uri())
    words = ("dog", "fox", "day", "jumps")
    rows = [{"positive": f"The {word} sleeps {i}.", "negative": f"The {word} jumps {i}."} for word in words
            for i in range(6)]  # fmt: skip
    create(installation, "sleep", rows, settings={"hook_points": ["resid_post.2"], "position": "mean"})
    done = run_next(installation, "signature")
    assert done.state == "succeeded", done.error
    row = readings(installation)["sleep", "v1"]
    assert row.figures["rows_judged"] == 24
    assert row.figures["probe_auroc"] > 0.7
    assert {one["hook_point"] for one in row.carriers} <= {"resid_post.2"}
