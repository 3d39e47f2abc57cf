"""Tables in Parquet: what pandas reads is what the API says, and a large family is streamed."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pyarrow import parquet

from featurewatch.service.features import tables
from featurewatch.service.kit.db import Database
from featurewatch.service.models import DependencyGraph
from featurewatch.service.verdicts.figures import FIGURES
from tests import factories
from tests.api.test_errors import check_problem

URL = "/v1/families/smol"


@pytest.fixture(autouse=True)
def family(database: Database) -> None:
    """v1 <- v2; three features, the last one new in v2; two hook points, one of them in v2 only."""
    rng = np.random.default_rng(0)
    with database.write() as session:
        family = factories.family(session)
        v1 = factories.checkpoint(session, family, "v1")
        quality = {"size_factor": 1.07}
        v2 = factories.checkpoint(
            session, family, "v2", parent=v1, quality=quality, hook_points=["resid_post.12", "mlp_out.3"]
        )
        factories.checkpoint(session, family, "v3", parent=v2, state="registered")
        rows = [factories.feature(session, family, n, v1, label="é" if n else None) for n in (0, 1)]
        rows.append(factories.feature(session, family, 5, v2, tags=["a", "b"], watched=True, model_label_score=0.75))
        for row in rows[:2]:
            factories.verdict(session, v1, row, previous_status=None, projection_ratio=rng.random())
        successors = [{"id": "F5", "kind": "replaced", "cofiring": 0.9}]
        factories.verdict(session, v2, rows[0], "replaced", successors=successors, strength=rng.random())
        factories.verdict(session, v2, rows[1], "indeterminate", projection_ratio=None)
        factories.verdict(session, v2, rows[2], "emerged", previous_status=None)
        session.add(
            DependencyGraph(
                checkpoint_id=v2.id, feature=1, method="relp", family_id=family.id, hook_point="resid_post.12",
                n_positions=1, artifact="x", graph={}, effect=None, rewired=True, run_id="run_x",
            )
        )  # fmt: skip
        for checkpoint, hook in ((v1, "resid_post.12"), (v2, "resid_post.12"), (v2, "mlp_out.3")):
            factories.source(session, checkpoint, hook, 48).stats = {"paired_with": hook}
            for metric in ("readability", "strength", "projection", "projection_reach", "cosine"):
                values = rng.random(6 if checkpoint is v2 else 2).astype(np.float32)
                values[2:5] = np.nan
                if hook == "mlp_out.3":
                    values[0] = np.nan
                factories.measurement(session, checkpoint, metric, values).hook_point = hook


@pytest.fixture
def table(client: TestClient, tmp_path: Path) -> Iterator:
    def table(name: str) -> pandas.DataFrame:
        response = client.get(f"{URL}/tables/{name}")
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == tables.MEDIA_TYPE
        path = tmp_path / f"{name}.parquet"
        path.write_bytes(response.content)
        return pandas.read_parquet(path)

    return table


def plain(row: pandas.Series) -> dict:
    """A row as JSON has it: nulls, lists, Python's numbers."""
    found = row.astype(object)
    listed = {name: list(value) for name, value in found.items() if isinstance(value, np.ndarray)}
    return {name: None if pandas.isna(value) else value for name, value in found.items() if name not in listed} | listed


def test_verdicts_are_the_trajectories(client: TestClient, table) -> None:
    found = table("verdicts")
    assert list(found["checkpoint"]) == ["v1"] * 2 + ["v2"] * 3
    for id_ in ("F0", "F1", "F5"):
        points = client.get(f"{URL}/features/{id_}/trajectory").json()["points"]
        rows = [plain(row) for _, row in found[found["id"] == id_].iterrows()]
        for point, row in zip(points, rows, strict=True):
            for name in (figure.name for figure in FIGURES if figure.ends):
                ends = point.pop(f"{name}_ci") or (None, None)
                point |= {f"{name}_lo": ends[0], f"{name}_hi": ends[1]}
            assert row == point | {"id": id_}
    assert found["rewired"].tolist() == [None, None, None, True, None]


def test_sources_are_those_of_each_feature(client: TestClient, table) -> None:
    found = table("sources")
    for id_ in ("F0", "F1", "F5"):
        said = [
            source | {"checkpoint": checkpoint["checkpoint"], "id": id_}
            for checkpoint in client.get(f"{URL}/features/{id_}/sources").json()["data"]
            for source in checkpoint["sources"]
        ]
        for source in said:
            ends = source.pop("projection_ratio_ci") or (None, None)
            source |= {"projection_ratio_lo": ends[0], "projection_ratio_hi": ends[1]}
        assert [plain(row) for _, row in found[found["id"] == id_].iterrows()] == said


def test_features_are_those_of_the_api(client: TestClient, table) -> None:
    found = table("features")
    for _, row in found.iterrows():
        said = client.get(f"{URL}/features/{row['id']}").json()
        assert plain(row) == {name: said[name] for name in found.columns}
    assert list(found["id"]) == ["F0", "F1", "F5"]


def test_every_column_says_what_it_is(client: TestClient, tmp_path: Path) -> None:
    for name in ("verdicts", "sources"):
        (tmp_path / "table").write_bytes(client.get(f"{URL}/tables/{name}").content)
        schema = parquet.read_schema(tmp_path / "table")
        units = {field.name: field.metadata.get(b"unit") for field in schema if field.metadata}
        assert {units["strength"], units["projection_ratio"]} == {b"scale of the source", b"1"}
        numbers = [field for field in schema if str(field.type) in ("double", "int64")]
        assert all(b"unit" in field.metadata for field in numbers)


def test_a_family_without_verdicts_has_empty_tables(client: TestClient, database: Database, tmp_path: Path) -> None:
    with database.write() as session:
        factories.family(session, "new")
    for name in ("verdicts", "sources", "features"):
        (tmp_path / "table").write_bytes(client.get(f"/v1/families/new/tables/{name}").content)
        assert len(pandas.read_parquet(tmp_path / "table")) == 0


def test_a_checkpoint_is_read_when_its_row_group_is_asked_for(app: FastAPI, database: Database) -> None:
    """Memory holds one checkpoint, and no connection is held while the reader takes its time."""
    opened: list[int] = []

    def read():
        opened.append(threading.get_ident())
        return database.read()

    with database.read() as session:
        family_id = session.query(factories.Family.id).scalar()
    pieces = tables.stream(read, family_id, "verdicts")
    assert opened == []
    next(pieces)
    assert len(opened) == 2, "the list of checkpoints, and the first one"
    assert database.reader.pool.checkedout() == 0
    next(pieces)
    assert len(opened) == 3


def test_a_server_without_pyarrow_says_so(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    check_problem(client.get(f"{URL}/tables/verdicts"), 409, "parquet-not-installed")
    check_problem(client.get(f"{URL}/tables/other"), 422, "invalid-request")
