"""Own codes and places through API and worker, on precomputed activations of planted features."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featurewatch.service.models import Checkpoint, Code, Family
from featurewatch.service.verdicts.activity import OwnCode
from tests.e2e.inprocess import HOOK, Installation
from tests.unit.activations.tiny import write_activations
from tests.unit.crosscoder.planted import dense_code, directions, rotation

N, WIDTH, M, LENGTH = 8000, 64, 40, 20
NOISE = 0.15
FIT = {"n_features": 56, "k": 3, "steps": 1500, "batch_size": 256, "learning_rate": 0.005}
DOCUMENT = np.arange(N) // LENGTH
CODE = dense_code(N, M, 0.05, seed=0)
ROWS = 3 * directions(M, WIDTH, seed=1)
BROADENED, DISPLACED, TRIGGERED, NARROWED, GONE = range(5)


def activations(code: np.ndarray) -> np.ndarray:
    """float64 [N, WIDTH]; the noise is part of the text, so equal codes have equal activations."""
    return code @ ROWS + NOISE * np.random.default_rng(2).standard_normal((N, WIDTH))


def changed() -> np.ndarray:
    """The code of a checkpoint in which five features are active in other places."""
    rng, code = np.random.default_rng(3), CODE.copy()
    new = dense_code(N, M, 0.1, seed=4)
    code[:, BROADENED] = np.maximum(code[:, BROADENED], new[:, BROADENED])
    code[:, DISPLACED] = np.where(CODE[:, DISPLACED] == 0, dense_code(N, M, 0.05, seed=5)[:, DISPLACED], 0)
    triggered = np.isin(DOCUMENT, rng.choice(N // LENGTH, 12, replace=False))
    code[triggered, TRIGGERED] = 1.0
    code[:, NARROWED] *= rng.random(N) < 0.3
    code[:, GONE] = 0
    return code


class Lineage:
    """A family whose first checkpoint writes CODE."""

    def __init__(self, installation: Installation, family: str, **options: Any) -> None:
        self.installation, self.family = installation, family
        body = {"name": family, "hook_points": [HOOK], "crosscoder": FIT | options}
        assert installation.client.post("/v1/families", json=body).status_code == 201

    def add(self, name: str, x: np.ndarray, **more: Any) -> None:
        """Judge a checkpoint with these activations."""
        folder = self.installation.folder / self.family / name
        tensor = torch.from_numpy(x.astype(np.float32))
        write_activations(folder, {HOOK: tensor}, shard=4000, document=DOCUMENT)
        run = self.installation.judge(name, f"activations+{folder.as_uri()}", family=self.family, **more)
        assert run["state"] == "succeeded", run["error"]

    def stored(self, name: str) -> Code:
        """The row of a checkpoint's code."""
        with self.installation.database.read() as session:
            of = session.query(Checkpoint.id).join(Family, Family.id == Checkpoint.family_id)
            checkpoint_id = of.filter(Family.name == self.family, Checkpoint.name == name).one()[0]
            return session.get_one(Code, checkpoint_id)

    def own_code(self, name: str) -> OwnCode:
        """A checkpoint's own code."""
        return OwnCode.load(self.installation.artifacts.path(str(self.stored(name).own_code)))

    def features(self, name: str) -> dict[int, dict[str, Any]]:
        """Planted feature -> its row in a checkpoint's list of features. A feature is the column that fires with it."""
        response = self.list(checkpoint=name, limit=200)
        assert response.is_success, response.text
        planted = self.planted()
        return {planted[row["id"]]: row for row in response.json()["data"] if row["id"] in planted}

    def list(self, **parameters: Any) -> Any:
        """The response of the list of features."""
        return self.installation.client.get(f"/v1/families/{self.family}/features", params=parameters)

    def planted(self) -> dict[str, int]:
        """Id -> planted feature, by the correlation of the first checkpoint's own code with CODE."""
        code = self.own_code("v1")
        dense = code.matrix.toarray()
        both = np.corrcoef(dense.T, CODE.T)[: dense.shape[1], dense.shape[1] :]
        return {f"F{n}": int(row.argmax()) for n, row in zip(code.numbers, both, strict=True) if row.max() > 0.9}


@pytest.fixture(scope="module")
def installation(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("installation")
    shutil.copyfile(sqlite_template, folder / "featurewatch.db")
    made = Installation(folder, f"sqlite:///{folder}/featurewatch.db")
    with made.client:
        yield made
    made.database.close()


@pytest.fixture(scope="module")
def lineage(installation: Installation) -> Lineage:
    made = Lineage(installation, "planted")
    made.add("v1", activations(CODE))
    return made


def same_code(a: OwnCode, b: OwnCode) -> bool:
    pairs = ((getattr(a.matrix, name), getattr(b.matrix, name)) for name in ("data", "indices", "indptr"))
    return all(np.array_equal(one, other) for one, other in pairs) and np.array_equal(a.valid, b.valid)


def test_a_first_checkpoint_has_an_own_code_of_what_it_writes(lineage: Lineage) -> None:
    code, planted = lineage.own_code("v1"), lineage.planted()
    assert len(planted) >= 0.95 * M
    columns = [code.numbers.tolist().index(int(name[1:])) for name in planted]
    found, true = code.matrix.toarray()[:, columns] > 0, CODE[:, list(planted.values())] > 0
    valid = code.valid
    assert (found & true)[valid].sum() > 0.95 * true[valid].sum()
    assert (found & true)[valid].sum() > 0.95 * found[valid].sum()


SAME = (("child", "v1"), ("sibling", "v1"), ("grandchild", "child"))


@pytest.mark.parametrize(("name", "parent"), SAME, ids=[name for name, _ in SAME])
def test_the_same_weights_are_active_in_the_same_places(lineage: Lineage, name: str, parent: str) -> None:
    """With bit for bit the same own code, which is stored once."""
    lineage.add(name, activations(CODE), parent=parent, fit="extend")
    assert_unchanged(lineage, name)
    assert same_code(lineage.own_code(name), lineage.own_code("v1"))


def assert_unchanged(lineage: Lineage, name: str) -> None:
    """All planted features are present, in the same places, with nothing gained and nothing lost."""
    rows = lineage.features(name)
    assert len(rows) >= 0.95 * M
    assert {row["places"] for row in rows.values()} == {"same"}
    assert {row["status"] for row in rows.values()} == {"present"}
    for row in rows.values():
        assert row["gained_share"] <= 0.02 and row["lost_share"] <= 0.02
        assert row["firing_rate_ratio"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("basis", ["rotated", "permuted"])
def test_another_basis(lineage: Lineage, basis: str) -> None:
    """Own codes follow the decoder rows into it."""
    turn = rotation(WIDTH, seed=6) if basis == "rotated" else np.eye(WIDTH)[np.random.default_rng(7).permutation(WIDTH)]
    lineage.add(basis, activations(CODE) @ turn, parent="v1", fit="extend")
    assert_unchanged(lineage, basis)


def test_features_that_are_active_elsewhere(lineage: Lineage) -> None:
    lineage.add("changed", activations(changed()), parent="v1", fit="extend")
    rows = lineage.features("changed")
    words = {column: (rows[column]["status"], rows[column]["places"]) for column in range(M) if column in rows}
    wanted = {
        BROADENED: ("present", "broadened"),
        DISPLACED: ("present", "displaced"),
        TRIGGERED: ("present", "broadened"),
        NARROWED: ("present", "narrowed"),
        GONE: ("absent", None),
    }
    assert {column: words[column] for column in wanted} == wanted
    assert {word for column, word in words.items() if column not in wanted} == {("present", "same")}
    assert rows[BROADENED]["firing_rate_ratio"] > 2.5 and rows[BROADENED]["gained_share"] > 1.5
    assert rows[DISPLACED]["lost_share"] > 0.9
    assert rows[NARROWED]["lost_share"] == pytest.approx(0.7, abs=0.1)
    assert rows[TRIGGERED]["gained_documents"] <= 12
    listed = lineage.list(checkpoint="changed", places="broadened").json()["data"]
    assert {row["id"] for row in listed} == {rows[BROADENED]["id"], rows[TRIGGERED]["id"]}


def test_what_changed_is_the_new_baseline(lineage: Lineage) -> None:
    """Against its parent, and so is the way back."""
    lineage.add("after", activations(changed()), parent="changed", fit="extend")
    rows = lineage.features("after")
    assert {row["places"] for column, row in rows.items() if column != GONE} == {"same"}
    assert (rows[GONE]["status"], rows[GONE]["places"]) == ("absent", None)
    lineage.add("back", activations(CODE), parent="changed", fit="extend")
    rows = lineage.features("back")
    assert rows[BROADENED]["places"] == "narrowed"
    assert rows[DISPLACED]["places"] == "displaced"
    assert rows[NARROWED]["places"] == "broadened"
    assert (rows[GONE]["status"], rows[GONE]["places"]) == ("emerged", None)


def test_a_refit(lineage: Lineage) -> None:
    """Both checkpoints are read with the new generation's rows."""
    lineage.add("refitted", activations(CODE), parent="v1", fit="refit")
    assert lineage.stored("refitted").generation == 2
    assert_unchanged(lineage, "refitted")
    lineage.add("child-of-refitted", activations(CODE), parent="refitted", fit="extend")
    assert_unchanged(lineage, "child-of-refitted")
    assert same_code(lineage.own_code("child-of-refitted"), lineage.own_code("refitted"))


def test_a_joint_fit(installation: Installation) -> None:
    lineage = Lineage(installation, "joint")
    lineage.add("v1", activations(CODE), fit="later")
    assert lineage.installation.checkpoint("v1", "joint")["state"] == "harvested"
    lineage.add("v2", activations(changed()))
    rows = lineage.features("v2")
    assert rows[BROADENED]["places"] == "broadened"
    assert rows[TRIGGERED]["places"] == "broadened"
    assert {row["places"] for column, row in rows.items() if column > GONE} == {"same"}
    lineage.add("v3", activations(changed()))
    # The joint fit has a latent of its own for the places that one feature left.
    there = {row["places"] for column, row in lineage.features("v3").items() if column not in (NARROWED, GONE)}
    assert there == {"same"}


def test_a_joint_fit_compares_each_checkpoint_by_its_own_decoder(installation: Installation) -> None:
    lineage, weak = Lineage(installation, "levels"), CODE.copy()
    weak[:, 7] *= 0.2
    lineage.add("v1", activations(CODE), fit="later")
    lineage.add("v2", activations(weak))
    rows = lineage.features("v2")
    assert rows[7]["status"] == "suppressed"
    assert rows[7]["projection_ratio"] == pytest.approx(0.2, abs=0.05)
    assert {row["status"] for column, row in rows.items() if column != 7} == {"present"}


def test_a_parent_that_was_judged_without_own_codes(lineage: Lineage) -> None:
    """By an earlier version. It is read now, with the rows of its child."""
    lineage.add("old", activations(CODE), parent="v1", fit="extend")
    row = lineage.stored("old")
    with lineage.installation.database.write() as session:
        stored = session.get_one(Code, row.checkpoint_id)
        stored.own_code = stored.rows = None
    lineage.add("new", activations(changed()), parent="old", fit="extend")
    rows = lineage.features("new")
    assert [rows[column]["places"] for column in (BROADENED, DISPLACED, TRIGGERED, NARROWED)] == [
        "broadened", "displaced", "broadened", "narrowed"
    ]  # fmt: skip
    assert {row["places"] for column, row in rows.items() if column > GONE} == {"same"}
    assert lineage.stored("new").own_code and not lineage.stored("old").own_code
