"""Reports and comparisons in words: order, certainty, features that cannot be judged, filters."""

from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.db import Database
from tests import factories

URL = "/v1/families/smol"
HOSTILE = "<img src=x onerror=alert(1)> | @everyone `x`\x1b[31m"
SUCCESSOR = {"id": "F5", "kind": "replaced", "cofiring": 0.9}


def _ends(low: float | None, high: float | None) -> dict[str, float | None]:
    return {"projection_ratio_lo": low, "projection_ratio_hi": high}


NOTHING = {"projection_ratio": None, "minimum_detectable_ratio": None, "q_value": None, **_ends(None, None)}
CHANGES: dict[int, tuple[str, dict[str, Any]]] = {
    0: ("suppressed", {"change": 2.1, "projection_ratio": 0.24, **_ends(0.18, 0.31), "q_value": 0.0016}),
    1: ("absent", {"change": 6.0, "projection_ratio": 0.01, **_ends(-0.02, 0.04), "q_value": 1e-6}),
    2: ("suppressed", {"change": 1.2, "projection_ratio": 0.43, **_ends(0.41, 0.45), "q_value": 0.03}),
    3: ("suppressed", {"change": 1.7, "projection_ratio": 0.30, **_ends(0.15, 0.46), "q_value": 0.04}),
    4: ("amplified", {"change": 1.6, "projection_ratio": 3.1, **_ends(2.8, 3.4), "q_value": 0.01}),
    5: ("emerged", {"change": 6.6, "previous_status": None, "q_value": None}),
    6: ("absent", {"change": 0.0, "previous_status": "absent"}),
    7: ("indeterminate", {"change": 0.0, "firings": 9, **NOTHING}),
    8: ("indeterminate", {"change": 0.0, "projection_ratio": 0.6, **_ends(0.31, 0.96), "q_value": 0.7}),
    9: ("indeterminate", {"change": 0.0, **NOTHING}),
    10: ("replaced", {"change": 4.0, "projection_ratio": 0.05, **_ends(0.0, 0.09), "successors": [SUCCESSOR]}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def family(database: Database, artifacts: ArtifactStore) -> None:
    """v1 <- v2, twenty features: two are watched, one of them suppressed and one that could not be judged."""
    with database.write() as session:
        family = factories.family(session)
        v1 = factories.checkpoint(session, family, "v1")
        quality = {"fvu": 0.5, "valid_share": 0.61, "size_factor": 0.4, "refit_advised": True}
        v2 = factories.checkpoint(session, family, "v2", parent=v1, quality=quality, generation=2)
        for number in range(20):
            label = {0: "promises", 1: HOSTILE}.get(number)
            feature = factories.feature(session, family, number, v1, label=label, watched=number in (0, 8))
            if number != 5:
                factories.verdict(session, v1, feature, previous_status=None)
            status, values = CHANGES.get(number, ("present", {}))
            factories.verdict(session, v2, feature, status, **values)
        factories.measurement(session, v2, "documents", np.where(np.arange(20) == 9, 2, 50))
        factories.code(session, artifacts, family, v2)


def found(client: TestClient, query: str = "") -> list[str]:
    return [row["feature"]["id"] for row in client.get(f"{URL}/checkpoints/v2/report{query}").json()["findings"]]


def test_watched_features_first_then_what_is_gone_then_by_what_the_interval_allows(client: TestClient) -> None:
    # F2 changed less than F3, but its interval is narrower: it surely changed more.
    assert found(client) == ["F0", "F1", "F10", "F2", "F3", "F4", "F5"]
    report = client.get(f"{URL}/checkpoints/v2/report").json()
    first, second, third = report["findings"][:3]
    assert (
        first["what"]
        == "F0 (“promises”) was suppressed: it is written along its direction at 24% (95% CI 18 to 31%) of its former "
        "strength."
    )
    assert "at most 2 in 1,000 are expected to be false" in first["how_sure"]
    assert [example["token"] for example in first["examples"]] == ["The", "Stop"]
    assert "\x1b" not in second["what"] and "<img" in second["what"], "JSON is text; whoever shows it escapes it"
    assert "was replaced by F5 (on “token5”, “é”), which is active on 90% of its activation" in third["what"]
    assert third["examples"] == [], "no code holds it"
    assert report["changed"] == 7
    assert report["headline"].startswith("7 of 20 features changed since v1: F0 (“promises”) was suppressed to 24%")
    assert report["headline"].endswith(
        "F10 (on “token10”, “é”) was replaced by F5 and 4 more. 9 are present, 3 could not be judged, 1 was "
        "already gone. Of 2 watched features, 1 changed and 1 could not be judged."
    )


def test_what_could_not_be_judged(client: TestClient) -> None:
    unjudged = client.get(f"{URL}/checkpoints/v2/report").json()["not_judged"]
    assert (unjudged["features"], unjudged["watched"]) == (3, 1)
    assert {reason["reason"]: reason["features"] for reason in unjudged["reasons"]} == {
        "few_firings": 1, "few_documents": 1, "wide_interval": 1,
    }  # fmt: skip
    named = {one["feature"]["id"]: one for one in unjudged["named"]}
    assert list(named) == ["F8", "F9", "F7"], "watched ones first, then those that fire most"
    assert named["F7"]["why"] == "active on 9 positions of the probe corpus; at least 30 needed"
    assert named["F9"]["why"] == "active in 2 documents; an interval needs at least 5"
    assert named["F8"]["why"] == "ratio 60% (95% CI 31 to 96%): the interval crosses 50%"
    assert named["F8"]["detectable"] == "A fall to 90% or less would have been detected."
    assert "too few data to detect a change" in named["F7"]["detectable"]


def test_caveats(client: TestClient) -> None:
    caveats = " ".join(client.get(f"{URL}/checkpoints/v2/report").json()["caveats"])
    for said in (
        "A re-fit is advised",
        "Only 61% of the positions",
        "40% of the former scale",
        "generations (2 and 1)",
    ):
        assert said in caveats
    assert client.get(f"{URL}/checkpoints/v1/report").json()["caveats"] == []


def test_the_first_of_a_lineage(client: TestClient) -> None:
    report = client.get(f"{URL}/checkpoints/v1/report").json()
    assert report["headline"] == ("v1 is the first of its lineage and has no baseline. Of 19 features, 19 are present.")
    assert report["findings"] == [] and report["not_judged"]["features"] == 0


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("?min_change=2", ["F0", "F1", "F10", "F5"]),
        ("?max_q=0.01", ["F0", "F1", "F10", "F4"]),
        ("?min_change=2&max_q=0.001", ["F1", "F10"]),
        ("?min_change=50", []),
    ],
)
def test_by_effect_and_by_significance(client: TestClient, query: str, expected: list[str]) -> None:
    assert found(client, query) == expected
    rows = client.get(f"{URL}/features{query}&limit=500").json()["data"]
    # F6 is in the list as well, but no news: it was gone before.
    assert sorted({row["id"] for row in rows} - {"F6"}) == sorted(expected)
    report = client.get(f"{URL}/checkpoints/v2/report{query}").json()
    assert report["changed"] == len(expected) and {row["id"] for row in report["changes"]} == set(expected)
    assert f"of which {len(expected)} match the filter" in report["headline"]


def test_a_diff_says_the_same_as_the_report(client: TestClient) -> None:
    report = client.get(f"{URL}/checkpoints/v2/report").json()
    diff = client.get(f"{URL}/diff?from=v1&to=v2").json()
    for name in ("headline", "changed", "findings", "not_judged", "caveats", "counts"):
        assert diff[name] == report[name]
    watched = client.get(f"{URL}/diff?from=v1&to=v2&watched=true&status=suppressed").json()
    assert [row["feature"]["id"] for row in watched["findings"]] == ["F0"]
    assert [row["feature"]["id"] for row in watched["not_judged"]["named"]] == ["F8"]
    assert client.get(f"{URL}/diff?from=v1&to=v2&status=present").json()["findings"] == []


@pytest.mark.parametrize("sort", ["least_change", "minimum_detectable_ratio", "q_value"])
def test_new_orders_page_like_the_others(client: TestClient, sort: str) -> None:
    whole = [row["id"] for row in client.get(f"{URL}/features?sort={sort}&limit=500").json()["data"]]
    assert len(set(whole)) == 20
    if sort == "least_change":
        assert whole[:4] == ["F5", "F6", "F1", "F10"]
    url, paged = f"{URL}/features?sort={sort}&limit=3", []
    while url:
        response = client.get(url)
        paged += [row["id"] for row in response.json()["data"]]
        url = response.links["next"]["url"] if "next" in response.links else ""
    assert paged == whole


def test_hostile_text_is_inert_in_documents(client: TestClient) -> None:
    html = client.get(f"{URL}/checkpoints/v2/report?format=html").text
    assert "<img" not in html and "&lt;img" in html
    assert "<mark>The</mark> café" in html
    markdown = client.get(f"{URL}/checkpoints/v2/report?format=markdown").text
    assert "<img" not in markdown.replace("\\<img", "") and "@everyone" not in markdown and "\x1b" not in markdown
    assert "- ` ⟦The⟧ café `" in markdown
