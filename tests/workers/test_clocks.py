"""Two machines whose clocks are twenty minutes apart: what one stores and the other compares goes by the database's."""

import threading
import time
from datetime import timedelta

import pytest
from sqlalchemy import update

from featurewatch.service.kit import clock
from featurewatch.service.models import Bell, Run, Shard
from featurewatch.service.runs import logic as runs
from featurewatch.service.shards import logic as shards
from featurewatch.service.shards import queries as shard_queries
from featurewatch.service.webhooks import logic as webhooks
from featurewatch.service.webhooks import sending
from featurewatch.workers.sweeps import Sweeper
from tests import factories
from tests.workers.conftest import wait_for

OFF = timedelta(minutes=10)


@pytest.fixture(params=[OFF, -OFF], ids=["ahead", "behind"])
def machine(request, monkeypatch):
    """Puts this process on the worker's machine, or on the one that sweeps, whose clock is as wrong the other way.

    Threads that the test starts are on the worker's.
    """
    real, here = clock.utcnow, {"offset": -request.param}

    def now():
        return real() + (here["offset"] if threading.current_thread() is threading.main_thread() else request.param)

    def be(name):
        here["offset"] = request.param if name == "worker" else -request.param

    monkeypatch.setattr(clock, "utcnow", now)
    return be


def test_a_healthy_run_is_not_reaped(installation, sweeper, machine):
    run_id = installation.queue(installation.add_family(), steps=100, seconds=0.05)
    stop = threading.Event()
    thread = threading.Thread(target=installation.run_next, kwargs={"stop": stop.is_set})
    thread.start()
    wait_for(lambda: installation.run(run_id).state == "running")
    began = time.monotonic()
    while time.monotonic() - began < 1.5 * installation.settings.lease_seconds:
        assert sweeper.reap() == []
        time.sleep(0.1)
    run = installation.run(run_id)
    assert (run.state, run.attempt) == ("running", 1)
    stop.set()
    thread.join(20)


def test_a_dead_run_is_not_kept(installation, sweeper, machine):
    machine("worker")
    run_id = installation.queue(installation.add_family())
    with installation.database.write() as session:
        run = runs.claim(session, worker="dead", lease_seconds=0.3)
        assert runs.hold(session, run_id=run_id, attempt=run.attempt, lease_seconds=0.3)
    machine("sweeps")
    time.sleep(0.5)
    assert sweeper.reap() == [run_id]
    run, attempt = installation.run(run_id), installation.attempts(run_id)[0]
    assert run.created_at <= attempt.started_at <= attempt.ended_at


def test_runs_go_in_the_order_in_which_they_were_asked_for(installation, machine):
    family = installation.add_family()
    order = []
    for name in ("worker", "sweeps", "worker"):
        machine(name)
        order.append(installation.queue(family))
    assert [installation.run_next() for _ in order] == order


def test_a_healthy_helper_keeps_its_shard_and_a_dead_one_loses_it(installation, machine):
    run_id = installation.queue(installation.add_family())
    with installation.database.write() as session:
        run = runs.claim(session, worker="own", lease_seconds=60)
        shards.open_all(session, run, folder="f", sizes=[(0, 10)])
    machine("worker")
    with installation.database.write() as session:
        shard = shards.claim(session, run_id, worker="helper", lease_seconds=60)
        assert shards.heartbeat(session, shard, read=1, lease_seconds=60)
    machine("sweeps")
    with installation.database.write() as session:
        assert shards.claim(session, run_id, worker="other", lease_seconds=60) is None
        assert shard_queries.any_leased(session, clock.database_now(session))
    machine("worker")
    with installation.database.write() as session:
        assert shards.heartbeat(session, session.get_one(Shard, shard.id), read=1, lease_seconds=0.1)
    machine("sweeps")
    time.sleep(0.3)
    with installation.database.write() as session:
        assert shards.claim(session, run_id, worker="other", lease_seconds=60).id == shard.id


def test_a_bell_is_rung_again_after_a_lease_and_not_before(installation, settings, machine):
    run_id, rung = installation.queue(installation.add_family()), []
    sweeper = Sweeper(settings, installation.database, lambda run, queue: rung.append(run))
    machine("worker")
    assert sweeper.ring() == 1
    machine("sweeps")
    assert sweeper.ring() == 0
    with installation.database.write() as session:
        before = clock.database_now(session) - timedelta(seconds=settings.lease_seconds + 1)
        session.execute(update(Bell).values(rung_at=before))
    assert sweeper.ring() == 1
    assert rung == [run_id, run_id]


def test_a_delivery_is_sent_at_once_and_by_one_sender(database, register, machine):
    register("http://127.0.0.1:9/")
    machine("worker")
    with database.write() as session:
        webhooks.emit(session, type="checkpoint.judged", family_id=factories.family(session).id, data={}, key="k")
    machine("sweeps")
    with database.write() as session:
        assert len(sending.claim_due(session, limit=1)) == 1
    machine("worker")
    with database.write() as session:
        assert sending.claim_due(session, limit=1) == []


def test_leases_count_from_now_and_not_from_when_a_transaction_began(installation):
    run_id = installation.queue(installation.add_family())
    with installation.database.write() as session:
        run = runs.claim(session, worker="w", lease_seconds=60)
        claimed = run.lease_until
        time.sleep(0.5)
        runs.hold(session, run_id=run_id, attempt=run.attempt, lease_seconds=60)
    with installation.database.write() as session:
        assert (session.get_one(Run, run_id).lease_until - claimed).total_seconds() >= 0.5
