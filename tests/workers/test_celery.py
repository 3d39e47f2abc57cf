"""The deployment's doorbell: real Celery workers on Valkey and Postgres, and a broker that forgets."""

import os
import signal
import time

import pytest
import redis
from sqlalchemy import select

from featurewatch.service.models import Bell, Run
from featurewatch.service.runs import logic
from featurewatch.workers.app import make_app, publish
from featurewatch.workers.sweeps import Sweeper
from tests.services import free_port
from tests.workers.conftest import wait_for
from tests.workers.toy import journal

pytestmark = pytest.mark.parametrize("engine_kind", ["postgres"], indirect=True)


@pytest.fixture
def start_runs(start_celery):
    return lambda: start_celery(
        "tests.workers.toy_celery", "-Q", "runs", "-c", "1", "-n", f"runs{time.monotonic_ns()}@%h"
    )


def states(installation, run_ids):
    return [installation.run(run_id).state for run_id in run_ids]


def test_runs_are_done_although_the_broker_forgets_and_a_worker_dies(
    installation, start_runs, start_sweeps, broker_url
):
    families = [installation.add_family("a"), installation.add_family("b")]
    early = [installation.queue(family, seconds=0.1) for family in families for _ in range(2)]
    start_sweeps()
    # Rung, and nobody is there to hear it. Then the broker loses the messages.
    wait_for(lambda: not unrung(installation))
    broker = redis.Redis.from_url(broker_url)
    assert broker.llen("runs") >= 2
    broker.flushall()
    first = start_runs()
    wait_for(lambda: states(installation, early) == ["succeeded"] * 4, 60)
    slow = installation.queue(families[0], steps=8, seconds=0.3)
    wait_for((installation.folder_of(slow) / "harvest-1").exists)
    broker.flushall()
    kill_group(first)  # as a container goes: the pool's child with it
    start_runs()
    wait_for(lambda: states(installation, [slow]) == ["succeeded"], 60)
    assert journal(installation.folder_of(slow))[-1] == "finished 2"


def test_a_warm_shutdown_puts_the_run_back(installation, start_runs, start_sweeps):
    run_id = installation.queue(installation.add_family(), steps=100, seconds=0.2)
    start_sweeps()
    worker = start_runs()
    wait_for((installation.folder_of(run_id) / "harvest-1").exists)
    began = time.monotonic()
    worker.terminate()
    assert worker.wait(20) == 0
    assert time.monotonic() - began < 10, "it did not wait for the end of the run"
    run = installation.run(run_id)
    assert (run.state, run.max_attempts) == ("queued", 4)


def test_a_broker_that_is_away_is_told_within_seconds_and_the_bell_stays(installation):
    run_id = installation.queue(installation.add_family())
    url = f"redis://127.0.0.1:{free_port()}/0"
    app = make_app(installation.settings.model_copy(update={"broker_url": url}))
    sweeper = Sweeper(installation.settings, installation.database, lambda run, queue: publish(app, run, queue))
    began = time.monotonic()
    with pytest.raises(Exception, match="refused"):
        sweeper.ring()
    assert time.monotonic() - began < 5
    assert unrung(installation) == [run_id]


def test_a_worker_takes_from_its_own_queue_alone(installation, start_celery, start_sweeps):
    """The first run of `both` is for the other worker, and the one behind it has to wait for that."""
    both, other = installation.add_family("both"), installation.add_family("other")
    first, label = installation.queue(both), installation.queue(both, "label")
    alone = installation.queue(other, "label")
    start_sweeps()
    start_celery("tests.workers.toy_celery", "-Q", "cpu", "-c", "1", "-n", "cpu@%h")
    wait_for(lambda: states(installation, [alone]) == ["succeeded"], 60)
    assert states(installation, [first, label]) == ["queued", "queued"]
    start_celery("tests.workers.toy_celery", "-Q", "runs", "-c", "1", "-n", "gpu@%h")
    wait_for(lambda: states(installation, [first, label]) == ["succeeded"] * 2, 60)
    names = {run: installation.attempts(run)[0].worker for run in (first, label, alone)}
    workers = {run: name.rpartition(":")[0] for run, name in names.items()}  # host and process
    assert workers[label] == workers[alone] != workers[first]


def test_a_cancelled_run_is_not_worked_on_when_its_bell_comes(installation, start_runs, start_sweeps):
    family = installation.add_family()
    cancelled, following = installation.queue(family), installation.queue(family)
    with installation.database.write() as session:
        logic.request_cancel(session, session.get_one(Run, cancelled))
    start_sweeps()
    start_runs()
    wait_for(lambda: states(installation, [following]) == ["succeeded"], 60)
    assert states(installation, [cancelled]) == ["cancelled"]


def unrung(installation):
    with installation.database.read() as session:
        return session.scalars(select(Bell.run_id).where(Bell.rung_at.is_(None))).all()


def kill_group(process):
    os.killpg(process.pid, signal.SIGKILL)
