"""Features: lists with every filter and order, single ones, examples, codes and reports."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.sparse
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.db import Database
from featurewatch.service.models import Alert, AlertRule, Code, Family
from tests import factories
from tests.api.test_errors import check_problem

URL = "/v1/families/smol"


@pytest.fixture(autouse=True)
def family(database: Database) -> Family:
    """v1 <- v2 (judged) <- v3 (not yet), six features; in v2 one is suppressed, one replaced, one emerged."""
    with database.write() as session:
        family = factories.family(session)
        v1 = factories.checkpoint(session, family, "v1")
        v2 = factories.checkpoint(session, family, "v2", parent=v1)
        factories.checkpoint(session, family, "v3", parent=v2, state="registered", quality=None)
        features = [
            factories.feature(session, family, 0, v1, label="100% sure", tags=["deception"], watched=True),
            factories.feature(session, family, 1, v1, tags=["deception-2"]),
            *(factories.feature(session, family, number, v1) for number in (2, 3, 4)),
            factories.feature(session, family, 5, v2, origin="emerged"),
        ]
        for feature in features[:5]:
            factories.verdict(session, v1, feature, previous_status=None, firing_rate=0.1 * (feature.number + 1))
        successor = {"id": "F5", "kind": "replaced", "cofiring": 0.9}
        factories.verdict(session, v2, features[0], "suppressed", change=2.0, firing_rate=0.01)
        factories.verdict(session, v2, features[1], "replaced", change=3.0, successors=[successor], firing_rate=0.02)
        factories.verdict(session, v2, features[2], "indeterminate", change=0.0, projection_ratio=None)
        for feature in features[3:5]:
            factories.verdict(session, v2, feature)
        factories.verdict(session, v2, features[5], "emerged", change=2.0, previous_status=None)
        rule = AlertRule(name="watched", family_id=family.id, condition={"kind": "watched"})
        session.add(rule)
        session.flush()
        session.add(
            Alert(
                kind="watched",
                key="watched here",
                rule_id=rule.id,
                family_id=family.id,
                checkpoint_id=v2.id,
                summary="F0 <suppressed> | here",
                evidence=[],
                muted_until=None,
            )
        )
    return family


def ids(client: TestClient, query: str = "") -> list[str]:
    response = client.get(f"{URL}/features?{query}")
    assert response.status_code == 200, response.text
    return [row["id"] for row in response.json()["data"]]


def walk(client: TestClient, url: str) -> Iterator[dict]:
    while url:
        response = client.get(url)
        assert response.status_code == 200, response.text
        yield from response.json()["data"]
        url = response.links["next"]["url"] if "next" in response.links else ""


def test_default_list_is_the_newest_judged_checkpoint_largest_change_first(client: TestClient) -> None:
    response = client.get(f"{URL}/features")
    rows = response.json()["data"]
    assert [row["id"] for row in rows] == ["F1", "F0", "F5", "F2", "F3", "F4"]
    assert rows[0] == {
        "id": "F1", "label": None, "auto_label": "“token1”, “é”", "tags": ["deception-2"], "watched": False,
        "model_label": None, "model_label_by": None, "model_label_score": None, "model_label_score_ci": None,
        "born_in": "v1", "origin": "fitted",
        "top_tokens": [" token1", "é"], "promoted_tokens": [], "generation": 1, "retired_in": None,
        "checkpoint": "v2", "baseline": "v1", "status": "replaced", "previous_status": "present", "change": 3.0,
        "projection_ratio": 1.0, "projection_ratio_ci": [0.9, 1.1], "strength_ratio": 1.0, "strength_ratio_ci": None,
        "orthogonal_ratio": 0.1, "q_value": 1e-6, "strength": 1.5, "direction_cosine": 0.99, "readability": 0.8,
        "firing_rate": 0.02, "firings": 300, "minimum_detectable_ratio": 0.9,
        "places": None, "places_q_value": None, "firing_rate_before": None,
            "firing_rate_ratio": None, "firing_rate_ratio_ci": None,
            "gained_share": None, "gained_share_ci": None, "lost_share": None, "lost_share_ci": None,
            "kept_amplitude": None, "kept_amplitude_ci": None, "gained_documents": None,
            "successors": [{"id": "F5", "kind": "replaced", "cofiring": 0.9}],
        "rewired": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("checkpoint=v1", ["F0", "F1", "F2", "F3", "F4"]),
        ("checkpoint=v2&baseline=v1&status=present", ["F3", "F4"]),
        ("status=suppressed&status=emerged", ["F0", "F5"]),
        ("watched=true", ["F0"]),
        ("watched=false&status=suppressed", []),
        ("tag=deception", ["F0"]),
        ("tag=decep", []),
        ("q=100%25", ["F0"]),
        ("q=100_", []),
        ("q=TOKEN5", ["F5"]),
        ("q=“TOKEN5”, “é", ["F5"]),
        ("q=é&status=emerged", ["F5"]),
        ("q=F3", ["F3"]),
        ("q=F9999999999", []),
        ("sort=id", ["F0", "F1", "F2", "F3", "F4", "F5"]),
        ("sort=id&order=desc", ["F5", "F4", "F3", "F2", "F1", "F0"]),
        ("sort=projection_ratio", ["F0", "F1", "F3", "F4", "F2", "F5"]),
        ("sort=projection_ratio&order=desc", ["F1", "F3", "F4", "F0", "F2", "F5"]),
        ("sort=firing_rate&order=asc", ["F0", "F2", "F3", "F4", "F5", "F1"]),
    ],
)
def test_filters_and_orders(client: TestClient, query: str, expected: list[str]) -> None:
    assert ids(client, query) == expected


@pytest.mark.parametrize("sort", ["change", "id", "projection_ratio", "readability", "firing_rate", "q_value"])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_hold_every_row_once(client: TestClient, sort: str, order: str) -> None:
    whole = ids(client, f"sort={sort}&order={order}")
    assert sorted(whole) == ["F0", "F1", "F2", "F3", "F4", "F5"]
    for limit in (1, 2, 5):
        rows = walk(client, f"{URL}/features?sort={sort}&order={order}&limit={limit}")
        assert [row["id"] for row in rows] == whole


def test_cursor_of_another_filter(client: TestClient) -> None:
    cursor = client.get(f"{URL}/features?limit=1").json()["next_cursor"]
    check_problem(client.get(f"{URL}/features?limit=1&status=present&cursor={cursor}"), 400, "bad-cursor")


def test_lists_refused(client: TestClient) -> None:
    check_problem(client.get(f"{URL}/features?checkpoint=v3"), 409, "not-judged")
    check_problem(client.get(f"{URL}/features?checkpoint=v9"), 404, "unknown-checkpoint")
    check_problem(client.get(f"{URL}/features?status=gone"), 422, "invalid-request")
    check_problem(client.get(f"{URL}/features?sort=colour"), 422, "invalid-request")


def test_nothing_judged_yet(client: TestClient, database: Database) -> None:
    with database.write() as session:
        factories.family(session, "empty")
    check_problem(client.get("/v1/families/empty/features"), 404, "nothing-judged")


def test_one_feature(client: TestClient) -> None:
    feature = client.get(f"{URL}/features/F0").json()
    assert feature["label"] == "100% sure" and feature["last"]["status"] == "suppressed"
    for unknown in ("F99", "x", "F99999999999", "F4294967296"):
        check_problem(client.get(f"{URL}/features/{unknown}"), 404, "unknown-feature")


def test_trajectory(client: TestClient) -> None:
    course = client.get(f"{URL}/features/F0/trajectory").json()
    assert [(point["checkpoint"], point["baseline"], point["status"]) for point in course["points"]] == [
        ("v1", None, "present"),
        ("v2", "v1", "suppressed"),
    ]
    assert [point["checkpoint"] for point in client.get(f"{URL}/features/F5/trajectory").json()["points"]] == ["v2"]


def test_patch(client: TestClient) -> None:
    changed = client.patch(f"{URL}/features/F2", json={"tags": ["b", "a", "a"], "watched": True}).json()
    assert (changed["label"], changed["tags"], changed["watched"]) == (None, ["a", "b"], True)
    assert client.patch(f"{URL}/features/F2", json={"label": "refusal"}).json()["tags"] == ["a", "b"]
    assert client.get(f"{URL}/features/F2").json()["label"] == "refusal"
    assert client.patch(f"{URL}/features/F2", json={"label": None}).json()["label"] is None
    check_problem(client.patch(f"{URL}/features/F2", json={"tags": ["No Spaces"]}), 422, "invalid-request")
    check_problem(client.patch(f"{URL}/features/F2", json={"born_in": "v2"}), 422, "invalid-request")
    assert ids(client, "tag=a") == ["F2"]


def test_diff_with_the_parent_is_the_stored_verdicts(client: TestClient) -> None:
    diff = client.get(f"{URL}/diff?from=v1&to=v2&status=suppressed").json()
    assert (diff["from"], diff["to"]) == ("v1", "v2")
    assert [row["id"] for row in diff["data"]] == ["F0"]
    assert diff["counts"] == {
        "present": 2, "suppressed": 1, "amplified": 0, "absent": 0, "relocated": 0, "replaced": 1, "emerged": 1,
        "indeterminate": 1,
    }  # fmt: skip
    assert [row["id"] for row in walk(client, f"{URL}/diff?from=v1&to=v2&limit=2")] == [
        "F1", "F0", "F5", "F2", "F3", "F4",
    ]  # fmt: skip
    check_problem(client.get(f"{URL}/diff?from=v1&to=v3"), 409, "not-judged")
    check_problem(client.get(f"{URL}/diff?to=v3"), 422, "invalid-request")


def test_examples(client: TestClient, database: Database, artifacts: ArtifactStore, family: Family) -> None:
    check_problem(client.get(f"{URL}/features/F0/examples"), 404, "no-code")
    with database.write() as session:
        found = session.merge(family)
        factories.code(session, artifacts, found, factories.checkpoint(session, found, "v4"))
    answer = client.get(f"{URL}/features/F0/examples").json()
    assert answer == {
        "id": "F0",
        "checkpoint": "v4",
        "data": [
            {"document": 0, "position": 0, "text_before": "", "token": "The", "text_after": " café", "activation": 1.5},
            {"document": 7, "position": 2, "text_before": "", "token": "Stop", "text_after": " now", "activation": 0.5},
        ],
    }
    assert client.get(f"{URL}/features/F1/examples").json()["data"][0]["token"] == " caf"
    assert len(client.get(f"{URL}/features/F0/examples?limit=1").json()["data"]) == 1
    check_problem(client.get(f"{URL}/features/F3/examples"), 404, "no-code")


def test_examples_without_text(
    client: TestClient, database: Database, artifacts: ArtifactStore, family: Family
) -> None:
    with database.write() as session:
        found = session.merge(family)
        factories.code(session, artifacts, found, factories.checkpoint(session, found, "v4"), with_text=False)
    assert client.get(f"{URL}/features/F5/examples").json()["data"] == [
        {"document": 7, "position": 2, "text_before": None, "token": None, "text_after": None, "activation": 3.5}
    ]


def test_examples_are_of_the_newest_code_that_has_the_feature(
    client: TestClient, database: Database, artifacts: ArtifactStore, family: Family
) -> None:
    with database.write() as session:
        found = session.merge(family)
        older = factories.code(session, artifacts, found, factories.checkpoint(session, found, "v4"))
        # As a re-fit leaves them: not in the order of their numbers.
        factories.save(artifacts, "code-2", {"feature_numbers": np.array([3, 0], np.int64)})
        tops: dict[str, np.ndarray] = {
            "positions": np.array([[3], [2]], np.int64),
            "values": np.array([[9.0], [7.0]], np.float32),
        }
        factories.save(artifacts, "examples-2", tops)
        newer = Code(
            checkpoint_id=factories.checkpoint(session, found, "v5").id, family_id=found.id, generation=2,
            artifact="code-2", examples="examples-2", n_positions=4, n_features=2, extra={},
        )  # fmt: skip
        session.add(newer)
        assert older.checkpoint_id != newer.checkpoint_id
    for feature, checkpoint, activations in (("F3", "v5", [9.0]), ("F0", "v5", [7.0]), ("F1", "v4", [2.5])):
        answer = client.get(f"{URL}/features/{feature}/examples").json()
        assert (answer["checkpoint"], [one["activation"] for one in answer["data"]]) == (checkpoint, activations)
    findings = client.get(f"{URL}/checkpoints/v2/report").json()["findings"]
    told = {one["feature"]["id"]: [example["activation"] for example in one["examples"]] for one in findings}
    assert (told["F1"], told["F0"], told["F5"]) == ([2.5], [7.0], [3.5])
    with database.write() as session:  # what was read of a code is not told of the one that takes its place
        taken = {"artifact": older.artifact, "examples": older.examples}
        session.execute(update(Code).where(Code.artifact == "code-2").values(taken))
    assert client.get(f"{URL}/features/F0/examples").json()["data"][0]["activation"] == 1.5


def test_codes(client: TestClient, database: Database, artifacts: ArtifactStore, family: Family) -> None:
    check_problem(client.get(f"{URL}/codes"), 404, "no-code")
    with database.write() as session:
        found = session.merge(family)
        factories.code(session, artifacts, found, factories.checkpoint(session, found, "v4"))
    response = client.get(f"{URL}/codes")
    code = scipy.sparse.load_npz(io.BytesIO(response.content))
    assert code.format == "csr" and code.dtype == np.float32
    assert code.toarray().tolist() == [[1.5, 0, 0], [0, 2.5, 0], [0.5, 0, 3.5], [0, 0, 0]]
    assert client.get(f"{URL}/codes", headers={"If-None-Match": response.headers["etag"]}).status_code == 304
    columns = client.get(f"{URL}/codes/ids").json()
    assert columns == {"checkpoint": "v4", "generation": 1, "feature_ids": ["F0", "F1", "F5"]}
    check_problem(client.get(f"{URL}/codes?checkpoint=v1"), 404, "no-code")


def test_a_code_that_the_store_has_lost(
    client: TestClient, database: Database, artifacts: ArtifactStore, family: Family
) -> None:
    with database.write() as session:
        found = session.merge(family)
        factories.code(session, artifacts, found, factories.checkpoint(session, found, "v4"))
    with database.read() as session:
        artifacts.path(session.scalars(select(Code.artifact)).one()).unlink()
    for path in ("codes", "codes/ids", "features/F0/examples"):
        check_problem(client.get(f"{URL}/{path}"), 404, "artifact-missing")


def test_report(client: TestClient) -> None:
    report = client.get(f"{URL}/checkpoints/v2/report").json()
    assert report["baseline"] == "v1" and report["features"] == 6
    assert report["counts"]["suppressed"] == 1
    assert [row["id"] for row in report["changes"]] == ["F1", "F0", "F5"]
    assert report["quality"]["fvu"] == 0.21
    assert [(alert["rule"], alert["state"]) for alert in report["alerts"]] == [("watched", "open")]
    assert client.get(f"{URL}/checkpoints/v1/report").json()["baseline"] is None
    check_problem(client.get(f"{URL}/checkpoints/v3/report"), 409, "not-judged")


@pytest.mark.parametrize(
    ("query", "accept", "kind"),
    [
        ("", "text/markdown", "text/markdown"),
        ("", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8", "text/html"),
        ("?format=md", "application/json", "text/markdown"),
        ("?format=html", "*/*", "text/html"),
        ("", "image/png;q=1, application/json;q=0.5, text/markdown;q=0.1", "application/json"),
    ],
)
def test_report_formats(client: TestClient, query: str, accept: str, kind: str) -> None:
    response = client.get(f"{URL}/checkpoints/v2/report{query}", headers={"Accept": accept})
    assert response.headers["content-type"].partition(";")[0] == kind
    assert "F1" in response.text and response.headers["etag"]
    if kind == "text/html":
        assert "<suppressed>" not in response.text and "&lt;suppressed&gt;" in response.text
        assert "default-src 'none'" in response.headers["content-security-policy"]
    if kind == "text/markdown":
        assert "F0 \\<suppressed\\> \\| here" in response.text


def test_report_in_no_such_format(client: TestClient) -> None:
    check_problem(client.get(f"{URL}/checkpoints/v2/report?format=pdf"), 406, "not-acceptable")
    answer = client.get(f"{URL}/checkpoints/v2/report", headers={"Accept": "image/png"})
    check_problem(answer, 406, "not-acceptable")
