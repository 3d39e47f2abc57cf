"""Checkpoints against others than their parent: computed from the stored measurements, listed like stored ones."""

import numpy as np
import pytest
from fastapi.testclient import TestClient

from featurewatch.service.kit.db import Database
from tests import factories

URL = "/v1/families/smol"
N_FEATURES, REPLICATES = 40, 30


@pytest.fixture(autouse=True)
def family(database: Database) -> None:
    """v1 <- v2 <- v3. Feature 3 falls by a third in each step: never much, but much in all. Feature 4 doubles twice."""
    noise = np.random.default_rng(0)
    with database.write() as session:
        family = factories.family(session)
        parent = None
        for step, name in enumerate(("v1", "v2", "v3")):
            parent = factories.checkpoint(session, family, name, parent=parent)
            level = 1 + 0.002 * noise.normal(size=(REPLICATES + 1, N_FEATURES))
            level[:, 3] *= 0.6**step
            level[:, 4] *= 1.7**step
            for metric in ("level", "reference_level", "strength"):
                factories.measurement(session, parent, metric, level)
            factories.measurement(session, parent, "readability", np.full(N_FEATURES, 0.9))
            factories.measurement(session, parent, "documents", np.full(N_FEATURES, 100))
            for number in range(N_FEATURES):
                if step == 0:
                    tags = ["mine"] if number in (3, 7) else []
                    factories.feature(session, family, number, parent, tags=tags)
                factories.verdict(session, parent, session.get_one(factories.Feature, (family.id, number)))


def test_small_steps_add_up(client: TestClient) -> None:
    assert client.get(f"{URL}/features?status=suppressed&status=amplified").json()["data"] == []
    diff = client.get(f"{URL}/diff?from=v1&to=v3").json()
    assert (diff["counts"]["suppressed"], diff["counts"]["amplified"]) == (1, 1)
    assert diff["counts"]["present"] == N_FEATURES - 2
    changed = {row["id"]: row for row in diff["data"] if row["status"] != "present"}
    assert {row["baseline"] for row in diff["data"]} == {"v1"}
    assert changed["F3"]["status"] == "suppressed"
    assert changed["F3"]["projection_ratio"] == pytest.approx(0.36, abs=0.02)
    assert changed["F4"]["status"] == "amplified"
    assert [row["id"] for row in diff["data"]][:2] in (["F3", "F4"], ["F4", "F3"])


def test_a_list_against_another_baseline_is_the_same_comparison(client: TestClient) -> None:
    diff = client.get(f"{URL}/diff?from=v1&to=v3&limit=500").json()
    rows = client.get(f"{URL}/features?checkpoint=v3&baseline=v1&limit=500").json()
    assert rows["data"] == diff["data"]
    report = client.get(f"{URL}/checkpoints/v3/report?baseline=v1").json()
    assert report["baseline"] == "v1" and report["counts"] == diff["counts"]
    assert {row["id"] for row in report["changes"]} == {"F3", "F4"}


def test_backwards(client: TestClient) -> None:
    changed = client.get(f"{URL}/diff?from=v3&to=v1&status=suppressed&status=amplified").json()["data"]
    assert {row["id"]: row["status"] for row in changed} == {"F3": "amplified", "F4": "suppressed"}


@pytest.mark.parametrize("sort", ["change", "id", "projection_ratio", "direction_cosine"])
def test_filters_and_pages(client: TestClient, sort: str) -> None:
    url = f"{URL}/diff?from=v1&to=v3&sort={sort}"
    whole = [row["id"] for row in client.get(f"{url}&limit=500").json()["data"]]
    assert len(whole) == N_FEATURES
    found, cursor = [], ""
    while cursor is not None:
        page = client.get(f"{url}&limit=7{cursor and f'&cursor={cursor}'}").json()
        found += [row["id"] for row in page["data"]]
        cursor = page["next_cursor"]
    assert found == whole
    tagged = client.get(f"{url}&tag=mine").json()["data"]
    assert {row["id"] for row in tagged} == {"F3", "F7"}
    assert [row["id"] for row in client.get(f"{url}&tag=mine&status=present").json()["data"]] == ["F7"]
