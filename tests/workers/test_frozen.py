"""Runs that no thread of their own process could end: they hold the GIL, or come to no step any more."""

import os
import signal
import subprocess
import sys
import time

import pytest
from sqlalchemy import update

from featurewatch.service.health import queries as health
from featurewatch.service.kit import clock
from featurewatch.service.models import LogLine, Run
from featurewatch.service.runs import logic
from tests.processes import alive
from tests.workers.conftest import wait_for, working_pid
from tests.workers.toy import journal

LONG = {"FEATUREWATCH_LEASE_SECONDS": "600"}
"""A lease that no test waits for."""


@pytest.fixture(params=[("sqlite", "embedded"), ("postgres", "embedded"), ("postgres", "celery")], ids="-".join)
def kinds(request):
    """Of the database, and of the worker."""
    return request.param


@pytest.fixture
def engine_kind(kinds):
    return kinds[0]


@pytest.fixture
def start_either(kinds, request):
    """Starts a worker of the test's kind, with variables."""
    if kinds[1] == "embedded":
        return request.getfixturevalue("start_worker")
    request.getfixturevalue("start_sweeps")()
    celery = request.getfixturevalue("start_celery")
    return lambda **environment: celery(
        "tests.workers.toy_celery", "-Q", "runs", "-c", "1", "-n", "runs@%h", **environment
    )


def spinning(installation, run_id):
    """The processes of a run that holds the GIL, once it does."""
    beside = wait_for(lambda: journal(installation.folder_of(run_id)), 60)
    return [working_pid(installation, run_id), *map(int, beside)]


def gone(pids):
    return not any(map(alive, pids))


def workers(installation):
    """How many there are, and how many of them are stuck, as `/readyz` has it."""
    with installation.database.read() as session:
        return health.workers(session, clock.database_now(session))


def outcomes(installation, run_id):
    return [(one.outcome, (one.error or {}).get("code")) for one in installation.attempts(run_id)]


def test_one_that_gives_no_sign_of_life_is_ended_and_others_go_on(installation, start_either):
    spin = installation.queue(installation.add_family(), "spin")
    other = installation.queue(installation.add_family("other"))
    with installation.database.write() as session:
        session.execute(update(Run).where(Run.id == spin).values(max_attempts=2))
    worker = start_either()
    pids = spinning(installation, spin)
    wait_for(lambda: installation.run(other).state == "succeeded", 90)
    wait_for(lambda: installation.run(spin).state == "failed", 90)
    assert gone(pids)
    run = installation.run(spin)
    assert (run.error["code"], run.worker, run.lease_until) == ("worker-stuck", None, None)
    assert outcomes(installation, spin) == [("queued", "worker-stuck"), ("failed", "worker-stuck")]
    with installation.database.read() as session:
        last = session.get_one(LogLine, (spin, run.lines))
        assert (last.level, last.fields["code"]) == ("error", "worker-stuck")
    assert worker.poll() is None


@pytest.mark.parametrize("kind", ["spin", "stuck"])
def test_one_whose_time_is_over_is_ended(installation, start_either, kind):
    run_id = installation.queue(installation.add_family(), kind)
    start_either(FEATUREWATCH_RUN_SECONDS="2", FEATUREWATCH_RUN_GRACE_SECONDS="0.5", **LONG)
    pid = working_pid(installation, run_id)
    wait_for(lambda: installation.run(run_id).state == "failed", 60)
    assert gone([pid])
    assert outcomes(installation, run_id) == [("failed", "took-too-long")]
    following = installation.queue(installation.add_family("other"))
    wait_for(lambda: installation.run(following).state == "succeeded", 60)


def test_a_cancel_that_is_not_obeyed_is_carried_out(installation, start_either):
    run_id = installation.queue(installation.add_family(), "spin")
    start_either(FEATUREWATCH_RUN_GRACE_SECONDS="1", **LONG)
    pids = spinning(installation, run_id)
    with installation.database.write() as session:
        logic.request_cancel(session, session.get_one(Run, run_id))
    wait_for(lambda: installation.run(run_id).state == "cancelled", 60)
    assert gone(pids)
    assert outcomes(installation, run_id) == [("cancelled", "worker-stuck")]


def test_a_stuck_worker_says_so_and_ends_when_it_is_told_to(installation, start_either):
    run_id = installation.queue(installation.add_family(), "spin")
    worker = start_either(FEATUREWATCH_LEASE_SECONDS="16")
    pids = spinning(installation, run_id)
    wait_for(lambda: workers(installation) == (1, 1))
    began = time.monotonic()
    worker.terminate()
    assert worker.wait(30) == 0
    assert time.monotonic() - began < 10
    assert gone(pids)
    run = installation.run(run_id)
    assert (run.state, run.worker, run.max_attempts - run.attempt) == ("queued", None, 3), "it costs no attempt"
    assert workers(installation) == (0, 0)


def test_what_works_ends_with_a_supervisor_that_is_killed(installation, start_either):
    run_id = installation.queue(installation.add_family(), "spin")
    worker = start_either(**LONG)
    pid, *_ = spinning(installation, run_id)
    os.killpg(worker.pid, signal.SIGKILL)
    wait_for(lambda: gone([pid]), 30)


def test_a_run_whose_process_dies_goes_on_at_once(installation, start_either):
    run_id = installation.queue(installation.add_family(), steps=4, seconds=0.3)
    start_either(**LONG)
    wait_for((installation.folder_of(run_id) / "harvest-1").exists, 60)
    os.kill(working_pid(installation, run_id), signal.SIGKILL)
    wait_for(lambda: installation.run(run_id).state == "succeeded", 60)
    assert outcomes(installation, run_id) == [("queued", "worker-lost"), ("succeeded", None)]
    assert "SIGKILL" in installation.attempts(run_id)[0].error["detail"]


def test_one_process_does_run_after_run(installation, start_either):
    """So torch is loaded once."""
    family = installation.add_family()
    runs = [installation.queue(family) for _ in range(3)]
    start_either()
    wait_for(lambda: all(installation.run(run_id).state == "succeeded" for run_id in runs), 60)
    assert len({installation.attempts(run_id)[0].worker for run_id in runs}) == 1


def test_who_supervises_loads_no_torch():
    modules = "featurewatch.workers.embedded, featurewatch.workers.tasks, featurewatch.workers.__main__"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
