"""`/v1/runs/{run}/log`: paged, filtered, for whoever may read."""

import pytest

from featurewatch.service.kit.clock import utcnow
from featurewatch.service.models import Run
from featurewatch.service.runs import lines, logic
from tests import factories
from tests.api.test_errors import check_problem


@pytest.fixture
def run(database):
    """A run with lines of two attempts, of every level."""
    with database.write() as session:
        family = factories.family(session)
        row = logic.create(session, family_id=family.id, checkpoint_id=None, kind="onboard", params={})
        for row.attempt in (1, 2):
            session.flush()
            said = [("info", f"step {n}", {"n": n, "attempt": row.attempt}) for n in range(3)]
            factories.log(
                session, row, [*said, ("warning", "odd", {}), ("error", "failed", {"exception": "Traceback"})]
            )
        return row.id


def numbers(client, run, query=""):
    return [line["number"] for line in client.get(f"/v1/runs/{run}/log?{query}").json()["data"]]


def test_lines_are_told_oldest_first_and_paged(client, run):
    found, url = [], f"/v1/runs/{run}/log?limit=4"
    while url:
        answer = client.get(url)
        found += answer.json()["data"]
        url = answer.links.get("next", {}).get("url")
    assert [(line["number"], line["attempt"]) for line in found] == [(n, 1 if n <= 5 else 2) for n in range(1, 11)]
    assert found[0] | {"at": ""} == {
        "number": 1, "attempt": 1, "at": "", "level": "info", "event": "step 0", "fields": {"n": 0, "attempt": 1},
    }  # fmt: skip
    assert found[4]["fields"] == {"exception": "Traceback"}
    assert client.get(f"/v1/runs/{run}").json()["log_lines"] == 10


def test_lines_are_filtered(client, run):
    assert numbers(client, run, "attempt=2") == [6, 7, 8, 9, 10]
    assert numbers(client, run, "level=warning") == [4, 5, 9, 10]
    assert numbers(client, run, "level=error&attempt=1") == [5]
    assert numbers(client, run, "after=8") == [9, 10]
    assert numbers(client, run, "attempt=3") == numbers(client, run, f"after={2**31 - 1}") == []
    for wrong in ("attempt=0", f"after={2**31}", "level=loud"):
        assert client.get(f"/v1/runs/{run}/log?{wrong}").status_code == 422
    cursor = client.get(f"/v1/runs/{run}/log?limit=2").json()["next_cursor"]
    check_problem(client.get(f"/v1/runs/{run}/log?attempt=2&cursor={cursor}"), 400, "bad-cursor")
    check_problem(client.get("/v1/runs/run_nothing/log"), 404, "unknown-run")


def test_an_attempt_that_is_over_adds_nothing(database, run):
    line = lines.Line(11, utcnow(), "info", "late", {})
    for attempt, said in ((1, 10), (2, 11)):
        with database.write() as session:
            lines.keep(session, run_id=run, attempt=attempt, lines=[line])
            lines.keep(session, run_id=run, attempt=attempt, lines=[line])  # a beat whose answer was lost is repeated
            assert session.get_one(Run, run).lines == said
