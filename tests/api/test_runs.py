"""`/v1/runs`: lists, progress as a stream, cancel and retry."""

import json
import threading
from queue import Queue

import pytest

from featurewatch.service.models import Run
from featurewatch.service.runs import events, logic
from featurewatch.service.runs.states import RunState
from tests import factories


@pytest.fixture
def queue(database):
    """Makes a queued run of a new checkpoint."""

    def queue(name="v1", family="smol"):
        with database.write() as session:
            row = session.query(factories.Family).filter_by(name=family).one_or_none()
            row = row or factories.family(session, family)
            checkpoint = factories.checkpoint(session, row, name, state="registered")
            run = logic.create(session, family_id=row.id, checkpoint_id=checkpoint.id, kind="onboard", params={})
            return run.id

    return queue


def claim(database):
    with database.write() as session:
        return logic.claim(session, worker="w", lease_seconds=60)


def finish(database, run, state=RunState.SUCCEEDED, **values):
    with database.write() as session:
        assert logic.finish(session, run_id=run.id, attempt=run.attempt, state=state, **values)


def test_a_run_says_whose_it_is_and_how_far(client, database, queue):
    run_id = queue()
    run = client.get(f"/v1/runs/{run_id}").json()
    assert (run["family"], run["checkpoint"], run["kind"], run["state"]) == ("smol", "v1", "onboard", "queued")
    assert (run["progress"], run["attempt"], run["error"], run["started_at"]) == (0.0, 0, None, None)
    claimed = claim(database)
    error = {"code": "fit.diverged", "title": "The fit diverged", "detail": "loss is NaN at step 7"}
    finish(database, claimed, RunState.FAILED, error=error, seconds={"fit": 2.5})
    run = client.get(f"/v1/runs/{run_id}").json()
    assert (run["state"], run["error"], run["seconds"]) == ("failed", error, {"fit": 2.5})
    assert run["started_at"] <= run["finished_at"]
    missing = client.get("/v1/runs/run_nothing")
    assert (missing.status_code, missing.json()["code"]) == (404, "unknown-run")


def test_lists_are_filtered_and_paged_newest_first(client, database, queue):
    ids = [queue(f"v{n}") for n in range(5)]
    other = queue("v0", "other")
    claim(database)
    pages, url = [], "/v1/runs?limit=2"
    while url:
        answer = client.get(url)
        pages.append([row["id"] for row in answer.json()["data"]])
        url = answer.links.get("next", {}).get("url")
    assert pages == [[other, ids[4]], [ids[3], ids[2]], [ids[1], ids[0]]]

    def found(query):
        return [row["id"] for row in client.get(f"/v1/runs?{query}").json()["data"]]

    assert found("family=other") == [other]
    assert found("state=running") == [ids[0]]
    assert found("checkpoint=v3&family=smol") == [ids[3]]
    assert found("checkpoint=v3&family=other") == []
    assert client.get("/v1/runs?state=asleep").status_code == 422


def test_cancel_and_retry(client, database, queue):
    run_id = queue()
    cancelled = client.post(f"/v1/runs/{run_id}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (202, "cancelled")
    assert cancelled.headers["Location"] == f"/v1/runs/{run_id}"
    assert int(cancelled.headers["Retry-After"]) > 0
    again = client.post(f"/v1/runs/{run_id}/cancel")
    assert (again.status_code, again.json()["code"]) == (409, "run-ended")
    assert client.post(f"/v1/runs/{run_id}/retry").json()["state"] == "queued"
    assert client.post(f"/v1/runs/{run_id}/retry").status_code == 409
    claim(database)
    assert client.post(f"/v1/runs/{run_id}/cancel").json()["state"] == "cancelling"
    with database.read() as session:
        assert session.get_one(Run, run_id).state == "cancelling"


def test_events_end_with_the_run(client, database, queue, monkeypatch):
    """The test client holds a stream back until it ends, so another thread brings the run to its end.

    It goes on when the stream has looked, not after some seconds: a busy machine is seldom on time.
    """
    looks, look = Queue(), events._look

    def noted(*args):
        found = look(*args)
        looks.put((found.state, found.progress))
        return found

    monkeypatch.setattr(events, "_look", noted)
    monkeypatch.setattr(events, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.0)
    monkeypatch.setattr(events, "LONGEST_SECONDS", 120.0)
    run_id = queue()

    def until_looked_at(state, progress):
        while looks.get(timeout=60) != (state, progress):
            pass

    def work():
        until_looked_at("queued", 0.0)
        run = claim(database)
        for _ in range(2):  # nothing new the second time: a heartbeat
            until_looked_at("running", 0.0)
        with database.write() as session:
            logic.heartbeat(
                session,
                run_id=run.id,
                attempt=run.attempt,
                lease_seconds=60,
                stage="harvest",
                progress=0.5,
                detail={"positions_per_second": 2100.5},
                seconds={},
            )
        until_looked_at("running", 0.5)
        finish(database, run, result={"features": 3})

    worker = threading.Thread(target=work)
    worker.start()
    answer = client.get(f"/v1/runs/{run_id}/events")
    worker.join()
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    blocks = answer.text.strip().split("\n\n")
    assert ": still here" in blocks
    told = [block.split("\n") for block in blocks if block.startswith("event:")]
    runs = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in told]
    assert [(name, run["state"], run["progress"]) for name, run in runs] == [
        ("progress", "queued", 0.0),
        ("progress", "running", 0.0),
        ("progress", "running", 0.5),
        ("end", "succeeded", 1.0),
    ]
    assert runs[2][1]["detail"] == {"positions_per_second": 2100.5}
    assert client.get("/v1/runs/run_nothing/events").status_code == 404
