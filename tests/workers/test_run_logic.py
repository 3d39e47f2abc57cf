"""Claims, fences, the reaper, cancel and retry: on SQLite and Postgres, with real threads."""

import threading
from collections import Counter, defaultdict
from datetime import timedelta

import pytest
from sqlalchemy import select

from featurewatch.service.kit import clock
from featurewatch.service.kit.problems import ConflictError
from featurewatch.service.models import Bell, Event, Run
from featurewatch.service.runs import logic
from featurewatch.service.runs.states import RunState

LATER = timedelta(hours=1)


def claim(installation, **options):
    with installation.database.write() as session:
        return logic.claim(session, **({"worker": "w", "lease_seconds": 60.0} | options))


def end(installation, run, state=RunState.SUCCEEDED, **values):
    with installation.database.write() as session:
        return logic.finish(session, run_id=run.id, attempt=run.attempt, state=state, **values)


def bells(installation):
    with installation.database.read() as session:
        return Counter(session.scalars(select(Bell.run_id)))


def test_many_workers_never_hold_two_runs_of_a_family(installation):
    families = [installation.add_family(f"family-{n}") for n in range(3)]
    queued = {family: [installation.queue(family) for _ in range(5)] for family in families}
    held, done, faults = defaultdict(int), defaultdict(list), []
    lock, total = threading.Lock(), 15

    def work():
        while sum(map(len, done.values())) < total and not faults:
            run = claim(installation)
            if run is None:
                continue
            with lock:
                held[run.family_id] += 1
                if held[run.family_id] > 1:
                    faults.append(f"two runs of {run.family_id}")
            threading.Event().wait(0.002)
            with lock:
                # Before the end is written: afterwards the next one may be claimed at once.
                held[run.family_id] -= 1
                done[run.family_id].append(run.id)
            if not end(installation, run):
                faults.append(f"{run.id} could not be ended")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert done == queued, "each run once, the oldest of its family first"
    with installation.database.read() as session:
        assert set(session.scalars(select(Run.attempt))) == {1}


def test_priority_goes_before_age_and_a_bell_calls_the_line_of_its_family(installation):
    family, other = installation.add_family(), installation.add_family("other")
    first, second = installation.queue(family), installation.queue(family)
    urgent = installation.queue(other, priority=5)
    assert claim(installation, run_id=second).id == first, "the parent's run goes first, whichever bell came"
    assert claim(installation, run_id=second) is None, "its family is busy"
    assert claim(installation).id == urgent


def test_a_lost_fence_lets_nothing_through(installation):
    run_id = installation.queue(installation.add_family())
    old = claim(installation)
    with installation.database.write() as session:
        assert logic.reap(session, clock.utcnow()) == [], "its lease is not over"
        assert logic.reap(session, clock.utcnow() + LATER) == [run_id]
    new = claim(installation)
    assert (new.id, new.attempt) == (run_id, 2)
    with installation.database.write() as session:
        beat = logic.heartbeat(
            session, run_id=run_id, attempt=old.attempt, lease_seconds=60, stage="x", progress=1, detail={}, seconds={}
        )
        assert beat is None
    assert not end(installation, old, result={"of": "the old one"})
    assert end(installation, new, result={"of": "the new one"})
    assert installation.run(run_id).result == {"of": "the new one"}


def test_the_reaper_gives_up_after_the_last_attempt_and_tells_of_it(installation):
    family = installation.add_family()
    run_id, following = installation.queue(family), installation.queue(family)
    for attempt in (1, 2, 3):
        assert claim(installation).attempt == attempt
        assert bells(installation)[following] == 1
        with installation.database.write() as session:
            assert logic.reap(session, clock.utcnow() + LATER) == [run_id]
    run = installation.run(run_id)
    assert (run.state, run.error["code"]) == ("failed", "worker-lost")
    assert installation.checkpoint_state(run_id) == "failed"
    assert bells(installation)[following] == 2, "the next run of the family is rung"
    with installation.database.read() as session:
        event = session.scalars(select(Event)).one()
        assert (event.type, event.data["run"], event.data["family"]) == ("run.failed", run_id, "smol")


def test_cancel_and_retry(installation):
    run_id = installation.queue(installation.add_family())
    with installation.database.write() as session:
        run = session.get_one(Run, run_id)
        with pytest.raises(ConflictError):
            logic.retry(session, run)
        logic.request_cancel(session, run)
        assert run.state == "cancelled", "nobody works on it: at once"
        with pytest.raises(ConflictError):
            logic.request_cancel(session, run)
    assert installation.checkpoint_state(run_id) == "failed"
    assert claim(installation) is None
    with installation.database.write() as session:
        logic.retry(session, session.get_one(Run, run_id))
    assert installation.checkpoint_state(run_id) == "registered"
    claimed = claim(installation)
    with installation.database.write() as session:
        run = session.get_one(Run, run_id)
        logic.request_cancel(session, run)
        logic.request_cancel(session, run)
        assert run.state == "cancelling"
    assert end(installation, claimed, RunState.CANCELLED)
    assert installation.run(run_id).state == "cancelled"


def test_a_result_that_comes_before_the_worker_saw_the_cancel_counts(installation):
    run_id = installation.queue(installation.add_family())
    claimed = claim(installation)
    with installation.database.write() as session:
        logic.request_cancel(session, session.get_one(Run, run_id))
    assert end(installation, claimed, result={"features": 7})
    assert installation.run(run_id).state == "succeeded"


def test_a_cancelled_run_whose_worker_died_is_cancelled_by_the_reaper(installation):
    run_id = installation.queue(installation.add_family())
    claim(installation)
    with installation.database.write() as session:
        logic.request_cancel(session, session.get_one(Run, run_id))
    with installation.database.write() as session:
        assert logic.reap(session, clock.utcnow() + LATER) == [run_id]
    assert installation.run(run_id).state == "cancelled"


def test_a_deploy_costs_no_attempt_and_a_fault_does(installation):
    run_id = installation.queue(installation.add_family())
    error = {"code": "interrupted", "title": "t", "detail": "d"}
    for attempt in range(1, 6):
        run = claim(installation)
        assert run.attempt == attempt, "the fence always rises"
        with installation.database.write() as session:
            assert logic.release(session, run_id=run_id, attempt=attempt, error=error, counted=False) == "queued"
    assert bells(installation)[run_id] == 6
    states = []
    for _ in range(3):
        run = claim(installation)
        with installation.database.write() as session:
            states.append(logic.release(session, run_id=run_id, attempt=run.attempt, error=error, counted=True))
    assert states == ["queued", "queued", "failed"]
    with installation.database.write() as session:
        assert logic.release(session, run_id=run_id, attempt=run.attempt, error=error, counted=True) is None
