"""Calibrations by a real worker: nulls of planted activations and of a tiny model; stopped, resumed, cancelled."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.planted_data import make_lineage, write_checkpoint
from featurewatch.service.alerts import logic as alerts
from featurewatch.service.alerts.schemas import AlertRuleCreate
from featurewatch.service.calibrations import logic as calibrations
from featurewatch.service.calibrations.schemas import NULLS, CalibrationIn
from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.checkpoints.schemas import CheckpointIn
from featurewatch.service.families import logic as families
from featurewatch.service.families.schemas import FamilyIn
from featurewatch.service.kit.db import Base
from featurewatch.service.models import Alert, Run, Verdict
from featurewatch.service.runs import logic as runs
from featurewatch.workers.activations.models.loading import compute_dtype
from featurewatch.workers.pipelines import PIPELINES
from tests.unit.activations.tiny import TEXTS, save_checkpoint
from tests.workers.conftest import Installation

torch.set_num_threads(1)

PLANTED = {
    "n_checkpoints": 2, "n_positions": 5000, "width": 32, "n_planted": 24, "n_suppressed": 0, "n_removed": 3,
    "n_born": 1, "lowest_rate": 0.03,
}  # fmt: skip
FIT = {"n_features": 32, "k": 3, "steps": 250, "batch_size": 256, "learning_rate": 0.005}


def run(installation: Installation, **options: Any) -> Run:
    """The run whose turn it is, taken to its end."""
    run_id = installation.run_next(pipelines=PIPELINES, **options)
    assert run_id
    return installation.run(run_id)


def family(installation: Installation, name: str, uris: list[str], **body: Any) -> None:
    """A family with checkpoints v1, v2, ... judged."""
    with installation.database.write() as session:
        families.create(session, installation.settings, FamilyIn.model_validate({"name": name, **body}))
    for number, uri in enumerate(uris, start=1):
        with installation.database.write() as session:
            body_in = CheckpointIn(name=f"v{number}", uri=uri)
            checkpoints.register(session, installation.settings, families.get(session, name), body_in)
        done = run(installation)
        assert done.state == "succeeded", done.error


def planted(installation: Installation, tmp_path: Path, name: str = "planted", **policy: Any) -> None:
    """Of v2's features three are gone, and one is new."""
    lineage = make_lineage(1, **PLANTED)
    uris = []
    for checkpoint in (1, 2):
        folder = tmp_path / f"v{checkpoint}"
        if not folder.exists():
            write_checkpoint(lineage, checkpoint, folder)
        uris.append(f"activations+{folder.as_uri()}")
    family(installation, name, uris, hook_points=["resid_post.1"], crosscoder=FIT, policy=policy)


def ask(installation: Installation, name: str = "planted", **body: Any) -> str:
    with installation.database.write() as session:
        return calibrations.create(session, families.get(session, name), CalibrationIn.model_validate(body))[0].id


def tables(installation: Installation) -> dict[str, list[Any]]:
    """All rows but those of runs, their attempts, logs and bells."""
    with installation.database.read() as session:
        return {
            table.name: sorted(map(repr, session.execute(table.select())))
            for table in Base.metadata.sorted_tables
            if table.name not in ("run", "attempt", "run_log", "bell")
        }


def family_id(installation: Installation) -> str:
    with installation.database.read() as session:
        return families.get(session, "planted").id


def left_behind(installation: Installation) -> list[Path]:
    return [path for path in installation.settings.data_dir.rglob("*") if "calibrations" in str(path)]


def test_nothing_is_said_of_nulls_and_nothing_changes(installation: Installation, tmp_path: Path) -> None:
    planted(installation, tmp_path)
    before = tables(installation)
    with installation.database.read() as session:
        gone = session.query(Verdict).filter(Verdict.status.in_(["absent", "replaced"])).count()
    assert gone
    ask(installation)
    done = run(installation)
    assert done.state == "succeeded", done.error
    assert tables(installation) == before
    assert not left_behind(installation)
    assert list(done.seconds) == list(NULLS)
    result = done.result or {}
    assert result["checkpoint"] == "v2"
    by_name = {null["null"]: null for null in result["nulls"]}
    assert list(by_name) == list(NULLS)
    assert by_name["finetune"]["unavailable"]["code"] == "no-weights"
    for name in ("repeat", "bfloat16", "int8", "halves"):
        null = by_name[name]
        assert null["unavailable"] is None
        assert (null["features"]["alarms"], null["significant"], null["emerged"]) == (0, 0, 0), null
        assert null["features"]["of"] >= 20
        assert null["statuses"]["absent"] == gone * null["checkpoints"]["of"], "still gone, and no alarm"
        assert abs(null["ratio_quantiles"]["50"] - 1) < 0.01
    for name in ("repeat", "bfloat16", "int8"):
        places = by_name[name]["places"]
        assert places["alarms"] == 0 and places["of"] >= 10, name
    assert by_name["halves"]["places"] is None, "no position is in both"
    assert by_name["halves"]["checkpoints"]["of"] == 4
    assert by_name["repeat"]["coverage"] == 1.0
    spread = {name: null["ratio_quantiles"]["99.9"] - null["ratio_quantiles"]["0.1"] for name, null in by_name.items()
              if null["ratio_quantiles"]}  # fmt: skip
    assert spread["repeat"] < 1e-4 < spread["int8"] < spread["halves"]
    assert (result["checkpoints"]["of"], result["checkpoints"]["alarms"]) == (7, 0)
    assert result["features"]["of"] == sum(null["features"]["of"] for null in result["nulls"])
    assert 0 < result["features"]["upper"] < 0.03 < result["checkpoints"]["upper"]
    assert [row["current"] for row in result["grid"]].count(True) == 1


def test_false_alarms_are_counted_by_thresholds_and_rules_but_not_raised(
    installation: Installation, tmp_path: Path
) -> None:
    thresholds = {"suppressed_below": 0.999, "amplified_above": 1.001, "fdr": 0.9}
    planted(installation, tmp_path, **thresholds, sequential=False, code_error=0)
    with installation.database.write() as session:
        for name, condition in {
            "weaker": {"kind": "status_count", "status": "suppressed", "at_least": 1},
            "many": {"kind": "status_count", "status": "suppressed", "at_least": 1000},
            "watched": {"kind": "watched"},
        }.items():
            alerts.create_rule(session, AlertRuleCreate.model_validate({"name": name, "condition": condition}))
    with installation.database.read() as session:
        raised = session.query(Alert).count()
    ask(installation, nulls=["halves"], splits=6)
    result = run(installation).result or {}
    halves = result["nulls"][0]
    assert halves["features"]["alarms"] >= 5
    assert halves["significant"] >= halves["features"]["alarms"] - halves["emerged"]
    (met,) = halves["alerts"]
    assert met["name"] == "weaker"
    assert 1 <= met["comparisons"] <= 6
    # Rules apply to status changes: features already suppressed at v2 by this policy do not count.
    assert met["comparisons"] <= met["features"] <= halves["statuses"]["suppressed"]
    assert result["alerts"] == met["comparisons"]
    with installation.database.read() as session:
        assert session.query(Alert).count() == raised
    own, *others = result["grid"]
    assert own["current"] and own["features"]["alarms"] == halves["features"]["alarms"]
    default = next(row for row in others if row["suppressed_below"] == 0.5 and row["fdr"] == 0.05)
    assert default["features"]["alarms"] == 0
    assert default["features"]["of"] <= own["features"]["of"]


def test_a_stopped_run_goes_on_with_the_nulls_that_are_left(installation: Installation, tmp_path: Path) -> None:
    planted(installation, tmp_path)
    run_id = ask(installation, nulls=["repeat", "bfloat16", "halves"])
    folder = installation.artifacts.base
    kept = Path(folder, installation.run(run_id).family_id, "calibrations", run_id, "result-bfloat16.json")
    stopped = run(installation, stop=kept.exists)
    assert (stopped.state, stopped.attempt) == ("queued", 1)
    token = random.random()
    first = json.loads(kept.read_text())
    with installation.artifacts.create(str(kept.relative_to(folder))) as place:
        place.write_text(json.dumps(first | {"settings": {"made": token}}))
    done = run(installation)
    assert (done.state, done.attempt) == ("succeeded", 2), done.error
    nulls = {null["null"]: null for null in (done.result or {})["nulls"]}
    assert nulls["bfloat16"]["settings"] == {"made": token}, "it was made again"
    assert nulls["halves"]["features"]["of"] > 0
    assert not left_behind(installation)


def when(installation: Installation, reached: Callable[[], bool], act: Callable[[], None]) -> Callable[[], bool]:
    """For `stop`: asked at every check of the run; does something once, and never stops it."""
    done = False

    def asked() -> bool:
        nonlocal done
        if not done and reached():
            done = True
            act()
        return False

    return asked


def test_cancelled_it_leaves_nothing(installation: Installation, tmp_path: Path) -> None:
    planted(installation, tmp_path)
    run_id = ask(installation, nulls=["repeat", "halves"], splits=64)
    made = Path(installation.artifacts.base, installation.run(run_id).family_id, "calibrations", run_id)

    def cancel() -> None:
        with installation.database.write() as session:
            runs.request_cancel(session, session.get_one(Run, run_id))

    done = run(installation, stop=when(installation, (made / "result-repeat.json").exists, cancel))
    assert (done.id, done.state) == (run_id, "cancelled")
    assert done.result is None
    assert not left_behind(installation)
    assert installation.checkpoint_state(run_id) == "judged"


def test_none_to_be_had_is_a_failure_that_says_why(installation: Installation, tmp_path: Path) -> None:
    planted(installation, tmp_path)
    before = tables(installation)
    with installation.artifacts.create(f"{family_id(installation)}/calibrations/run_dead/result-int8.json") as place:
        place.write_text("{}")  # of one whose worker was killed, and that was never retried
    ask(installation, nulls=["finetune"])
    done = run(installation)
    assert (done.state, (done.error or {})["code"]) == ("failed", "no-null")
    assert "weights" in (done.error or {})["detail"]
    assert not left_behind(installation)
    changed = [name for name, rows in tables(installation).items() if rows != before[name]]
    assert changed in ([], ["event"], ["delivery", "event"]), "only the event that says so"


@pytest.fixture
def text(tmp_path: Path) -> str:
    """URI of a corpus of 60 documents."""
    rng = random.Random(0)
    words = " ".join(TEXTS).split()
    lines = [json.dumps({"text": " ".join(rng.choices(words, k=60))}) for _ in range(60)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    return (tmp_path / "corpus.jsonl").as_uri()


def test_a_model_is_read_again_rounded_and_fine_tuned(installation: Installation, tmp_path: Path, text: str) -> None:
    model = save_checkpoint(tmp_path / "model")
    crosscoder = {"n_features": 48, "k": 4, "steps": 300, "batch_size": 256, "learning_rate": 0.005}
    family(
        installation, "tiny", [model.as_uri()], hook_points=["resid_post.1", "resid_post.2"], crosscoder=crosscoder,
        corpus={"uri": text, "context_length": 64},
    )  # fmt: skip
    ask(installation, "tiny", finetune={"steps": 12, "learning_rate": 3e-4}, splits=2)
    done = run(installation)
    assert done.state == "succeeded", done.error
    nulls = {null["null"]: null for null in (done.result or {})["nulls"]}
    assert [null["unavailable"] for null in nulls.values()] == [None] * 5
    assert all(null["features"]["of"] >= 20 for null in nulls.values())
    spread = {name: null["ratio_quantiles"]["99"] - null["ratio_quantiles"]["1"] for name, null in nulls.items()}
    assert spread["repeat"] < 1e-3 < spread["int8"]
    # Where the hardware computes in bfloat16, rounding to it is one more repeat.
    assert (spread["bfloat16"] > 1e-3) == (compute_dtype("cpu") == torch.float32)
    assert spread["bfloat16"] < spread["int8"]
    settings = nulls["finetune"]["settings"]
    assert (settings["steps"], settings["learning_rate"], settings["optimizer"]) == (12, 3e-4, "AdamW")
    assert settings["loss_after"] < settings["loss_before"]
    assert settings["held_out_loss_after"] < settings["held_out_loss_before"]
    assert spread["finetune"] > spread["bfloat16"]
    assert not left_behind(installation)
    assert "files" not in nulls["repeat"]["settings"]


def test_a_model_that_is_gone_is_named(installation: Installation, tmp_path: Path, text: str) -> None:
    model = save_checkpoint(tmp_path / "model")
    family(
        installation, "tiny", [model.as_uri()], hook_points=["resid_post.1"], crosscoder=FIT,
        corpus={"uri": text, "context_length": 64},
    )  # fmt: skip
    model.rename(tmp_path / "moved")
    ask(installation, "tiny", nulls=["int8", "halves"])
    nulls = (run(installation).result or {})["nulls"]
    assert nulls[0]["unavailable"]["code"] == "model-missing"
    assert nulls[1]["unavailable"] is None
