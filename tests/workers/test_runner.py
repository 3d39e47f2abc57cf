"""One run from claim to end in this process: how it can end, and what a heartbeat survives."""

import pickle
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psycopg
import pytest
from sqlalchemy import select, update
from sqlalchemy.engine import make_url

from featurewatch.service.kit import clock
from featurewatch.service.models import Event, Run
from featurewatch.service.runs import logic
from featurewatch.workers.errors import LeaseLostError, RunError
from featurewatch.workers.execution import Execution
from tests.processes import held
from tests.workers.conftest import wait_for, working_pid
from tests.workers.toy import journal


def in_thread(installation, **options):
    thread = threading.Thread(target=installation.run_next, kwargs=options)
    thread.start()
    return thread


def working(installation, run_id):
    """Whether an attempt of the run is at its steps."""
    return (installation.folder_of(run_id) / "harvest-0").exists()


def test_a_run_succeeds_with_its_stages_timed(installation):
    run_id = installation.queue(installation.add_family(), seconds=0.05)
    assert installation.run_next() == run_id
    run = installation.run(run_id)
    assert (run.state, run.progress, run.error, run.worker, run.lease_until) == ("succeeded", 1.0, None, None, None)
    assert run.result == {"attempt": 1}
    assert set(run.seconds) == {"harvest", "measure"}
    assert 0.1 <= run.seconds["harvest"] < 5
    assert installation.run_next() is None


def test_numbers_that_json_lacks_do_not_stop_the_heart(installation):
    run_id = installation.queue(installation.add_family())
    seen = []

    def odd(execution):
        with execution.stage("fit"):
            execution.progress(np.float32(0.5), loss=float("nan"), rate=np.float32(2.5), at=Path("/x"))
            wait_for(lambda: (found := installation.run(run_id)).detail and seen.append(found) is None)
        with execution.write() as session:
            execution.finish(session, {"fvu": np.float64("inf"), "features": np.int64(3)})

    installation.run_next(pipelines={"steps": odd})
    assert (seen[0].progress, seen[0].detail) == (0.5, {"loss": None, "rate": 2.5, "at": "/x"})
    assert installation.run(run_id).result == {"fvu": None, "features": 3}


def test_a_pipeline_that_ends_without_a_word_has_succeeded(installation):
    run_id = installation.queue(installation.add_family(), "quiet")
    installation.run_next()
    assert installation.run(run_id).state == "succeeded"


@pytest.mark.parametrize(
    ("kind", "code", "detail"),
    [
        ("refuse", "activations.wrong_width", "resid_post.3 is 64 wide, the family's 128"),
        ("stumble", "internal", "ZeroDivisionError: division by zero"),
        ("juggle", "unknown-kind", "This worker has no pipeline for runs of kind 'juggle'."),
    ],
)
def test_a_failure_says_why_and_is_not_tried_again(installation, kind, code, detail):
    run_id = installation.queue(installation.add_family(), kind)
    installation.run_next()
    run = installation.run(run_id)
    assert (run.state, run.error["code"], run.error["detail"]) == ("failed", code, detail)
    assert installation.checkpoint_state(run_id) == "failed"
    assert installation.run_next() is None
    with installation.database.read() as session:
        assert session.scalars(select(Event.type)).all() == ["run.failed"]


def test_run_errors_survive_a_process_border():
    error = pickle.loads(pickle.dumps(RunError("a.b", "c", title="d")))
    assert error.as_dict() == {"code": "a.b", "detail": "c", "title": "d"}


def test_progress_is_written_and_a_cancel_is_seen(installation):
    run_id = installation.queue(installation.add_family(), steps=200, seconds=0.05)
    thread = in_thread(installation)
    run = wait_for(lambda: (found := installation.run(run_id)).progress > 0 and found)
    assert (run.state, run.stage, list(run.detail)) == ("running", "harvest", ["step"])
    with installation.database.write() as session:
        logic.request_cancel(session, session.get_one(Run, run_id))
    thread.join(20)
    assert installation.run(run_id).state == "cancelled"
    assert "finished 1" not in journal(installation.folder_of(run_id))


def test_a_worker_that_is_told_to_end_puts_its_run_back(installation):
    run_id = installation.queue(installation.add_family(), steps=200, seconds=0.02)
    stop = threading.Event()
    thread = in_thread(installation, stop=stop.is_set)
    wait_for(lambda: working(installation, run_id))
    stop.set()
    thread.join(20)
    run = installation.run(run_id)
    assert (run.state, run.error, run.max_attempts - run.attempt) == ("queued", None, 3)
    with installation.database.write() as session:
        session.execute(update(Run).values(params=run.params | {"steps": 3}))
    assert installation.run_next() == run_id
    assert installation.run(run_id).result == {"attempt": 2}


def test_what_nobody_asked_for_gives_way_and_goes_on_afterwards(installation):
    family = installation.add_family()
    unasked = installation.queue(family, steps=200, seconds=0.02, priority=-1)
    thread = in_thread(installation)
    wait_for(lambda: working(installation, unasked))
    alike = installation.queue(family, priority=-1)
    elsewhere = installation.queue(installation.add_family("other"))
    time.sleep(3)
    assert installation.run(unasked).state == "running"
    asked = installation.queue(family)
    thread.join(20)
    run = installation.run(unasked)
    assert (run.state, run.error, run.max_attempts - run.attempt) == ("queued", None, 3)
    with installation.database.write() as session:
        session.execute(update(Run).where(Run.id == unasked).values(params=run.params | {"steps": 3}))
    order = [installation.run_next() for _ in range(4)]
    assert sorted(order[:2]) == sorted([elsewhere, asked]) and order[2:] == [unasked, alike]
    assert installation.run(unasked).result == {"attempt": 2}


def attempts(installation, run_id):
    return [(one.number, one.outcome, (one.error or {}).get("code")) for one in installation.attempts(run_id)]


def test_attempts_are_kept_with_why_they_ended_and_what_they_cost(installation):
    run_id = installation.queue(installation.add_family(), steps=3, seconds=0.02)
    with installation.database.write() as session:
        logic.claim(session, worker="silent", lease_seconds=60)
        session.execute(update(Run).values(lease_until=clock.utcnow()))
        assert logic.reap(session, clock.utcnow()) == [run_id]

    def counted(execution):
        with execution.stage("harvest"):
            np.ones(30_000_000)  # 240 MB
            execution.progress(1.0, positions_per_second=1234.5)
        wait_for(lambda: installation.run(run_id).usage.get("positions_per_second"))
        raise RunError("a.b", "c")

    installation.run_next(pipelines={"steps": counted})
    with installation.database.write() as session:
        logic.retry(session, session.get_one(Run, run_id))
    installation.run_next()
    assert attempts(installation, run_id) == [
        (1, "queued", "worker-lost"),
        (2, "failed", "a.b"),
        (3, "succeeded", None),
    ]
    _, failed, last = installation.attempts(run_id)
    assert (failed.usage["device"], failed.usage["positions_per_second"]) == ("cpu", {"harvest": 1234.5})
    assert failed.usage["peak_memory_bytes"] > 240e6
    assert last.usage["peak_memory_bytes"] < failed.usage["peak_memory_bytes"], "a peak of its own"
    assert last.usage["positions_per_second"] == {} and last.usage["cpu_seconds"] >= 0
    assert last.started_at >= failed.ended_at >= failed.started_at


def test_a_run_that_takes_too_long_fails_at_its_next_step(installation):
    installation.settings = installation.settings.model_copy(update={"run_seconds": 0.2})
    run_id = installation.queue(installation.add_family(), steps=200, seconds=0.05)
    installation.run_next()
    run = installation.run(run_id)
    assert (run.state, run.error["code"]) == ("failed", "took-too-long")
    assert "finished 1" not in journal(installation.folder_of(run_id))


def test_a_worker_whose_run_was_taken_over_writes_nothing(installation):
    run_id = installation.queue(installation.add_family(), steps=100, seconds=0.05)
    thread = in_thread(installation)
    wait_for(lambda: working(installation, run_id))
    with installation.database.write() as session:
        # As a reaper whose worker was silent for an hour.
        session.execute(update(Run).values(lease_until=clock.utcnow()))
        assert logic.reap(session, clock.utcnow()) == [run_id]
        run = logic.claim(session, worker="another", lease_seconds=60)
        session.execute(update(Run).values(stage="of the other"))
    thread.join(20)
    assert not thread.is_alive(), "it noticed within a beat and left"
    run = installation.run(run_id)
    assert (run.state, run.attempt, run.worker, run.stage) == ("running", 2, "another", "of the other")


def test_a_write_of_a_lost_run_is_refused(installation, settings):
    run_id = installation.queue(installation.add_family())
    with installation.database.write() as session:
        run = logic.claim(session, worker="w", lease_seconds=60)
    execution = Execution(
        run,
        settings=settings,
        database=installation.database,
        artifacts=installation.artifacts,
        stop=threading.Event().is_set,
    )
    with pytest.raises(ZeroDivisionError), execution.write() as session:
        execution.finish(session, {"half": "way"})
        raise ZeroDivisionError
    assert installation.run(run_id).state == "running", "nothing of a transaction that broke"
    assert not execution.finished
    with installation.database.write() as session:
        session.execute(update(Run).values(attempt=2))
    with pytest.raises(LeaseLostError), execution.write() as session:
        pytest.fail("the fence let it in")
    with pytest.raises(LeaseLostError):
        execution.check()


@pytest.mark.parametrize("engine_kind", ["postgres"], indirect=True)
def test_a_database_that_is_away_for_a_moment_loses_nothing(installation, postgres):
    """A real outage: every connection is cut, and new ones are refused for longer than a beat."""
    run_id = installation.queue(installation.add_family(), steps=30, seconds=0.05)
    thread = in_thread(installation)
    wait_for(lambda: working(installation, run_id))
    name = make_url(installation.settings.database_url).database
    plain = postgres.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as admin:
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        time.sleep(1.5)
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    thread.join(30)
    assert installation.run(run_id).result == {"attempt": 1}
    assert journal(installation.folder_of(run_id)) == ["attempt 1", "finished 1"]


def events_of(installation, run_id):
    with installation.database.read() as session:
        return [event.data for event in session.scalars(select(Event)) if event.data["run"] == run_id]


@pytest.mark.parametrize("when", ["harvest-1", "measure-1"])
def test_a_killed_worker_costs_what_it_had_in_hand(installation, start_worker, when):
    run_id = installation.queue(installation.add_family(), steps=8, seconds=0.3)
    folder = installation.folder_of(run_id)
    first = start_worker()
    wait_for((folder / when).exists)
    first.kill()
    start_worker()
    wait_for(lambda: installation.run(run_id).state == "succeeded")
    run = installation.run(run_id)
    assert run.attempt == 2
    assert events_of(installation, run_id) == [{"run": run_id, "attempt": 2}], "one verdict, of the attempt that ended"
    assert journal(folder) == ["attempt 1", "attempt 2", "finished 2"]


def test_a_worker_ends_cleanly_and_the_next_one_goes_on_at_once(installation, start_worker):
    run_id = installation.queue(installation.add_family(), steps=4, seconds=0.3)
    first = start_worker()
    wait_for(lambda: working(installation, run_id))
    first.send_signal(signal.SIGTERM)
    assert first.wait(15) == 0
    assert installation.run(run_id).state == "queued"
    start_worker()
    wait_for(lambda: installation.run(run_id).state == "succeeded")
    assert installation.run(run_id).max_attempts == 4


def test_a_worker_that_was_frozen_writes_nothing_after_its_lease(installation, start_worker):
    run_id = installation.queue(installation.add_family(), steps=12, seconds=0.2)
    folder = installation.folder_of(run_id)
    frozen = start_worker()
    wait_for((folder / "harvest-2").exists)
    url = installation.settings.database_url
    with held(frozen.pid, url), held(working_pid(installation, run_id), url):
        start_worker()
        wait_for(lambda: installation.run(run_id).attempt == 2)
    wait_for(lambda: installation.run(run_id).state == "succeeded")
    assert installation.run(run_id).result == {"attempt": 2}
    frozen.send_signal(signal.SIGTERM)
    assert frozen.wait(15) == 0
    assert events_of(installation, run_id) == [{"run": run_id, "attempt": 2}]
    assert "finished 1" not in journal(folder)


def test_an_older_schema_is_told_and_not_worked_on(tmp_path, start):
    empty = tmp_path / "empty.db"
    process = start("featurewatch.workers", FEATUREWATCH_DATABASE_URL=f"sqlite:///{empty}")
    assert process.wait(30) == 1
