"""Lineage over a re-fit: lists, single features, and the report of the checkpoint that was re-fitted."""

import pytest
from fastapi.testclient import TestClient

from featurewatch.service.kit.db import Database
from featurewatch.service.models import Lineage
from tests import factories
from tests.api.test_errors import check_problem

URL = "/v1/families/smol"
LINKS = [
    # generation, old, new, kind, score
    (2, 0, 0, "carried", 0.93),
    (2, 1, None, "retired", 0.12),
    (2, 2, 10, "split", 0.71),
    (2, 2, 11, "split", 0.68),
    (2, 3, 12, "merged", 0.6),
    (2, 4, 12, "merged", 0.55),
    (2, None, 13, "new", 0.0),
    (3, 0, 0, "carried", 0.99),
    (3, 12, None, "retired", 0.25),
]


@pytest.fixture(autouse=True)
def family(database: Database) -> None:
    """v1 was fitted, v2 and v3 re-fitted."""
    with database.write() as session:
        family = factories.family(session)
        v1 = factories.checkpoint(session, family, "v1")
        v2 = factories.checkpoint(
            session, family, "v2", parent=v1, generation=2, quality={"fvu": 0.3, "fit": "refit: fvu 0.31 over 2 x 0.12"}
        )
        v3 = factories.checkpoint(session, family, "v3", parent=v2, generation=3, quality={"fvu": 0.2, "fit": "extend"})
        for number in (*range(5), *range(10, 14)):
            ended = next((g for g, old, new, _, _ in LINKS if old == number and new != number), None)
            born = v1 if number < 10 else v2
            feature = factories.feature(session, family, number, born, generation=1 + number // 10, retired_in=ended)
            for checkpoint in (v1, v2, v3)[number // 10 : (ended or 4) - 1]:
                factories.verdict(session, checkpoint, feature)
        for generation, old, new, kind, score in LINKS:
            at = {2: v2, 3: v3}[generation]
            session.add(Lineage(family_id=family.id, checkpoint_id=at.id, generation=generation, old=old, new=new,
                                kind=kind, score=score))  # fmt: skip


def _short(links: list[dict]) -> list[tuple]:
    return [(link["generation"], link["old"], link["new"], link["kind"], link["score"]) for link in links]


def _named(wanted: list[tuple]) -> list[tuple]:
    names = [None if number is None else f"F{number}" for link in wanted for number in link[1:3]]
    return [(link[0], *names[2 * i : 2 * i + 2], *link[3:]) for i, link in enumerate(wanted)]


def test_all_links_by_page(client: TestClient) -> None:
    found, url = [], f"{URL}/lineage?limit=4"
    while url:
        page = client.get(url)
        assert len(page.json()["data"]) <= 4
        found += page.json()["data"]
        url = page.links.get("next", {}).get("url")
    assert _short(found) == _named(LINKS)
    assert [link["checkpoint"] for link in found] == ["v2"] * 7 + ["v3"] * 2


@pytest.mark.parametrize(("query", "keep"), [
    ("generation=3", lambda link: link[0] == 3),
    ("kind=split", lambda link: link[3] == "split"),
    ("generation=3&kind=retired", lambda link: link == LINKS[-1]),
    ("generation=7", lambda _: False),
])  # fmt: skip
def test_some_links(client: TestClient, query: str, keep) -> None:
    found = client.get(f"{URL}/lineage?{query}").json()
    assert _short(found["data"]) == _named([link for link in LINKS if keep(link)])
    assert found["next_cursor"] is None


def test_refused(client: TestClient) -> None:
    check_problem(client.get(f"{URL}/lineage?kind=lost"), 422, "invalid-request")
    check_problem(client.get(f"{URL}/lineage?generation=0"), 422, "invalid-request")
    check_problem(client.get("/v1/families/none/lineage"), 404, "unknown-family")


def test_a_feature_says_where_it_went_and_came_from(client: TestClient) -> None:
    for number in (0, 2, 12, 13):
        feature = client.get(f"{URL}/features/F{number}").json()
        assert _short(feature["lineage"]) == _named([link for link in LINKS if number in link[1:3]])
        assert feature["retired_in"] == {2: 2, 12: 3}.get(number)


def test_a_retired_feature_keeps_its_trajectory(client: TestClient) -> None:
    points = client.get(f"{URL}/features/F2/trajectory").json()["points"]
    assert [point["checkpoint"] for point in points] == ["v1"]
    assert "F2" not in {row["id"] for row in client.get(f"{URL}/features?checkpoint=v2").json()["data"]}


def test_the_report_of_a_re_fit(client: TestClient) -> None:
    report = client.get(f"{URL}/checkpoints/v2/report").json()
    assert report["refit"] == {
        "why": "refit: fvu 0.31 over 2 x 0.12", "carried": 1, "retired": 1, "split": 1, "merged": 2, "new": 1,
    }  # fmt: skip
    text = "Re-fit: 1 carried, 1 retired, 1 split, 2 merged, 1 new."
    for form in ("markdown", "html"):
        assert text in client.get(f"{URL}/checkpoints/v2/report?format={form}").text
        assert "Re-fit" not in client.get(f"{URL}/checkpoints/v1/report?format={form}").text
    assert client.get(f"{URL}/checkpoints/v1/report").json()["refit"] is None
