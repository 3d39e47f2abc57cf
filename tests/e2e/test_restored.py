"""Artifacts that the store has lost: a run of the family makes them again of what they were made of."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from featurewatch.service.models import Checkpoint, Code, Family, Reading, Run, Source
from featurewatch.service.store import damage
from featurewatch.workers.pipelines.runs import restore
from tests.e2e.inprocess import HOOK, Installation, failed_by
from tests.e2e.parts import OPTIONS
from tests.unit.activations.tiny import write_activations

ROWS = [{"text": f"The quick brown fox number {n} jumps.", "label": n % 2 == 1} for n in range(40)]


@pytest.fixture(scope="module")
def lineage(installation: Installation) -> str:
    """A family: v1 <- v2, extended <- v3, re-fitted; with a signature that was read in all of them."""
    family = installation.make_family("lineage")
    for number, more in enumerate(({}, {"fit": "extend"}, {"fit": "refit"}), 1):
        _, folder = installation.fresh_model(seed=number)
        run = installation.judge(f"v{number}", folder.as_uri(), family=family, **more)
        assert run["state"] == "succeeded", run["error"]
    made = installation.client.post(f"/v1/families/{family}/signatures", json={"name": "odd", "rows": ROWS})
    assert made.is_success, made.text
    work(installation)
    return family


def work(installation: Installation) -> None:
    """Do the runs that wait."""
    with installation.database.read() as session:
        waiting = [row.id for row in session.query(Run).filter_by(state="queued").order_by(Run.created_at, Run.id)]
    for run_id in waiting:
        ended = installation.work(run_id)
        assert ended["state"] == "succeeded", ended["error"]


def extend(installation: Installation, family: str) -> dict[str, Any]:
    """Another child of v3, and the reading of its signatures."""
    name, folder = installation.fresh_model(seed=9)
    ended = installation.judge(name, folder.as_uri(), family=family, parent="v3", fit="extend")
    work(installation)
    return ended


def artifacts(installation: Installation, family: str, table: Any, column: str) -> list[str]:
    """Artifacts that rows of a family refer to, each once, the oldest checkpoint's first."""
    with installation.database.read() as session:
        of = session.query(Checkpoint.id).join(Family, Family.id == Checkpoint.family_id).filter(Family.name == family)
        ids = [row[0] for row in of.order_by(Checkpoint.created_at)]
        rows = session.query(table).filter(table.checkpoint_id.in_(ids)).all()
    ordered = sorted(rows, key=lambda row: ids.index(row.checkpoint_id))
    return list(dict.fromkeys(getattr(row, column) for row in ordered))


def take(installation: Installation, names: list[str]) -> dict[Path, dict[str, torch.Tensor]]:
    """Remove artifacts; what they held."""
    places = [installation.artifacts.cache / name for name in names]
    held = {place: load_file(place) for place in places}
    for place in places:
        place.unlink()
    return held


@pytest.mark.parametrize(
    ("table", "column"),
    [(Source, "dictionary"), (Code, "rows"), (Code, "own_code"), (Reading, "activations"), (Code, "examples")],
    ids=["dictionaries", "rows", "own-codes", "contrast-activations", "examples"],
)
def test_lost_artifacts_of_every_checkpoint(installation: Installation, lineage: str, table: Any, column: str) -> None:
    """All at once: a dictionary is solved against the parent's, which is solved first."""
    names = artifacts(installation, lineage, table, column)
    held = take(installation, names)
    assert len(held) >= 3
    ended = extend(installation, lineage)
    assert ended["state"] == "succeeded", ended["error"]
    for place, before in held.items():
        now = load_file(place)
        assert now.keys() == before.keys()
        for key, tensor in before.items():
            torch.testing.assert_close(now[key], tensor, rtol=1e-3, atol=1e-4, msg=f"{place.name}: {key}")


def test_rows_and_own_codes_together(installation: Installation, lineage: str) -> None:
    """Both are bit for bit what they were: the same weights have the same code, whenever it is read."""
    names = [name for column in ("rows", "own_code") for name in artifacts(installation, lineage, Code, column)]
    wholes = {name: (installation.artifacts.cache / name).read_bytes() for name in names}
    take(installation, names)
    assert extend(installation, lineage)["state"] == "succeeded"
    for name, whole in wholes.items():
        assert (installation.artifacts.cache / name).read_bytes() == whole, name


def test_an_own_code_of_activations_that_are_gone(installation: Installation, lineage: str) -> None:
    """It stays lost, and nothing that does not need it fails. What it was read from is not read in its place."""
    name = artifacts(installation, lineage, Code, "own_code")[0]
    with installation.database.write() as session:
        source = session.query(Source).join(Code, Code.checkpoint_id == Source.checkpoint_id)
        row = source.filter(Code.own_code == name).one()
        kept, row.activations = row.activations, None
    (place,) = take(installation, [name])
    assert extend(installation, lineage)["state"] == "succeeded"
    assert not place.exists()
    with installation.database.write() as session:
        session.get_one(Source, (row.checkpoint_id, row.hook_point)).activations = kept
    assert extend(installation, lineage)["state"] == "succeeded"
    assert place.exists()


def test_a_corpus_that_has_changed_is_not_taken(installation: Installation, lineage: str) -> None:
    """The copy holds what was read, or is not there."""
    row = installation.row(Family, name=lineage)
    copy = installation.artifacts.cache / row.documents["artifact"]
    whole, source = copy.read_bytes(), installation.corpus.read_text()
    copy.unlink()
    installation.corpus.write_text(source.replace("lazy", "idle"))
    name, folder = installation.fresh_model(seed=10)
    run = installation.judge(name, folder.as_uri(), family=lineage, parent="v3", fit="extend")
    failed_by(run, "artifact-missing", copy.name, "backup")
    assert not copy.exists()
    installation.corpus.write_text(source)
    assert installation.retry(run["id"])["state"] == "succeeded"
    work(installation)
    assert copy.read_bytes() == whole


def test_positions_are_not_those_of_another_checkpoint(installation: Installation, lineage: str) -> None:
    """They are found in the activations of the first checkpoint. Without any, they are left to a backup."""
    row = installation.row(Family, name=lineage)
    place = installation.artifacts.cache / row.positions["artifact"]
    whole, hidden = place.read_bytes(), list[tuple[Path, Path]]()
    place.unlink()
    for name in artifacts(installation, lineage, Source, "activations"):
        folder = installation.artifacts.cache / name
        hidden.append((folder.rename(folder.with_name(f"{folder.name}-hidden")), folder))
    name, folder = installation.fresh_model(seed=11)
    run = installation.judge(name, folder.as_uri(), family=lineage, parent="v3", fit="extend")
    failed_by(run, "artifact-missing", place.name, "backup")
    for now, before in hidden:
        now.rename(before)
    assert installation.retry(run["id"])["state"] == "succeeded"
    work(installation)
    assert place.read_bytes() == whole


def test_positions_without_text(installation: Installation) -> None:
    """Of precomputed activations."""
    x = torch.randn(600, 16, generator=torch.Generator().manual_seed(0)).relu()
    for name in ("b1", "b2"):
        write_activations(installation.folder / name, {HOOK: x + torch.eye(16)[0] * int(name[1])}, shard=200)
    body = {"name": "bare", "hook_points": [HOOK], "crosscoder": OPTIONS}
    assert installation.client.post("/v1/families", json=body).status_code == 201
    uris = {name: f"activations+{(installation.folder / name).as_uri()}" for name in ("b1", "b2")}
    assert installation.judge("b1", uris["b1"], family="bare")["state"] == "succeeded"
    place = installation.artifacts.cache / installation.row(Family, name="bare").positions["artifact"]
    whole = place.read_bytes()
    place.unlink()
    assert installation.judge("b2", uris["b2"], family="bare")["state"] == "succeeded"
    assert place.read_bytes() == whole


def test_every_kind_that_errors_call_restorable_is_restored() -> None:
    """The service tells people to retry for these kinds; the workers have to know how."""
    assert set(restore.MAKERS) == set(damage.REMADE)
    assert set(damage.REMADE) < set(damage.REBUILD)
